/// What a C# programmer sees of the library: no type that only F# has.
module LoRASub.Tests.FluentSurfaceTests

open System
open System.Reflection
open LoRASub.Core
open LoRASub.Data
open LoRASub.Fluent
open Expecto
open Microsoft.FSharp.Reflection

let private seen =
    BindingFlags.Public
    ||| BindingFlags.Static
    ||| BindingFlags.Instance
    ||| BindingFlags.DeclaredOnly

/// A type and what it is made of: `Task<Prediction[]>` gives Task, the array and Prediction.
let rec private parts (t: Type) : Type list =
    t
    :: [
        if t.HasElementType then
            yield! parts (t.GetElementType())

        for argument in t.GetGenericArguments() do
            if not argument.IsGenericParameter then
                yield! parts argument
    ]

/// The types in the signatures of a type's public members, with the member.
let private mentioned (t: Type) : (string * Type) list =
    [
        for m in t.GetMembers seen do
            let types =
                match m with
                | :? PropertyInfo as p -> [ p.PropertyType ]
                | :? FieldInfo as f -> [ f.FieldType ]
                | :? EventInfo as e -> [ e.EventHandlerType ]
                | :? ConstructorInfo as c -> [ for p in c.GetParameters() -> p.ParameterType ]
                | :? Reflection.MethodInfo as f ->
                    f.ReturnType :: [ for p in f.GetParameters() -> p.ParameterType ]
                | _ -> []

            for one in List.collect parts types do
                $"{t.Name}.{m.Name}", one

        for one in t.GetInterfaces() |> List.ofArray |> List.collect parts do
            $"{t.Name}", one
    ]

/// Why a C# programmer should not meet a type, if so.
let private objection (t: Type) : string option =
    let name = string t.FullName

    if name.StartsWith("Microsoft.FSharp", StringComparison.Ordinal) then
        Some "of F#'s own library"
    elif FSharpType.IsTuple t then
        Some "a tuple"
    elif FSharpType.IsUnion t then
        Some "a union"
    else
        None

/// The objections to a type's members and to those of all types of the library that they lead to.
let private objections (roots: Type list) : string list =
    let library = typeof<InputException>.Assembly

    let rec visit (known: Set<string>) (found: string list) (left: Type list) =
        match left with
        | [] -> List.rev found
        | t :: rest when known.Contains t.FullName -> visit known found rest
        | t :: rest ->
            let all = mentioned t

            let bad =
                [
                    for place, one in all do
                        match objection one with
                        | Some why -> $"{place}: {one.Name}, {why}"
                        | None -> ()
                ]

            let next =
                all
                |> List.map snd
                |> List.filter (fun one -> one.Assembly = library && not one.IsGenericParameter)

            visit (known.Add t.FullName) (List.rev (List.distinct bad) @ found) (next @ rest)

    visit Set.empty [] roots

[<Tests>]
let tests =
    testList
        "FluentSurface"
        [
            testCase "C# meets no type that only F# has" (fun () ->
                let roots =
                    typeof<InputException>.Assembly.GetExportedTypes()
                    |> Array.filter (fun t -> t.Namespace = typeof<ContinualClassifier>.Namespace)
                    |> List.ofArray

                Expect.contains roots typeof<ContinualClassifier> "the namespace"
                let found = objections (typeof<InputException> :: roots)
                Expect.isEmpty found (String.concat "\n" found))

            testCase "functions, unions and options are found, also behind other types" (fun () ->
                let found = objections [ typeof<Dataset> ]

                Expect.contains
                    found
                    "ImageSet.Read: FSharpFunc`2, of F#'s own library"
                    "through the type of a property"

                Expect.isNonEmpty (objections [ typeof<ReadOptions> ]) "an option"
                Expect.isNonEmpty (objections [ typeof<LoRASub.Learn.ClassInfo> ]) "a union")
        ]
