/// Every public function and value of the library is documented, as the compiler's documentation file has it.
module LoRASub.Tests.ApiDocsTests

open System
open System.Collections.Generic
open System.IO
open System.Reflection
open System.Runtime.CompilerServices
open System.Text.RegularExpressions
open System.Xml.Linq
open Expecto
open LoRASub.Core
open Microsoft.FSharp.Reflection

let private library = typeof<InputException>.Assembly

let private everything =
    BindingFlags.Public
    ||| BindingFlags.Static
    ||| BindingFlags.Instance
    ||| BindingFlags.DeclaredOnly

/// "Outer.Inner", without the namespace, the arity and the suffix that the compiler gives a module beside a type.
let rec private shortName (t: Type) : string =
    let own = Regex.Replace(t.Name, "(Module)?(`\d+)?$", "")

    match t.DeclaringType with
    | null -> own
    | outer -> $"{shortName outer}.{own}"

/// A type as the documentation file writes it in the signature of a function.
let rec private written (t: Type) : string =
    let arguments = t.GetGenericArguments()

    if t.IsGenericMethodParameter then
        $"``{t.GenericParameterPosition}"
    elif t.IsGenericParameter then
        $"`{t.GenericParameterPosition}"
    elif t.IsByRef then
        $"{written (t.GetElementType())}@"
    elif t.IsArray && t.GetArrayRank() = 1 then
        $"{written (t.GetElementType())}[]"
    elif t.IsArray then
        let dimensions = String.Join(",", Seq.replicate (t.GetArrayRank()) "0:")
        $"{written (t.GetElementType())}[{dimensions}]"
    else
        let name =
            (if t.IsGenericType then t.GetGenericTypeDefinition() else t).FullName.Replace('+', '.')

        if arguments.Length = 0 then
            name
        else
            let inside = String.Join(",", Array.map written arguments)
            Regex.Replace(name, @"`\d+", "") + "{" + inside + "}"

let private key (m: MemberInfo) (parameters: ParameterInfo[]) : string =
    let kind, name, arity =
        match m with
        | :? PropertyInfo -> "P", m.Name, 0
        | :? ConstructorInfo -> "M", "#ctor", 0
        | :? MethodBase as f -> "M", m.Name, f.GetGenericArguments().Length
        | _ -> "M", m.Name, 0

    let arity = if arity = 0 then "" else $"``{arity}"

    let signature =
        if parameters.Length = 0 then
            ""
        else
            String.Join(",", parameters |> Array.map (fun p -> written p.ParameterType))
            |> fun all -> $"({all})"

    let owner = m.DeclaringType.FullName.Replace('+', '.')
    $"{kind}:{owner}.{name}{arity}{signature}"

/// A public function, value, property or constructor.
type private Member =
    {
        Owner: string
        Name: string
        Key: string
        /// What F# writes before a type describes its first constructor as well.
        Type: string option
        IsOperator: bool
        /// Those that a caller gives: not unit.
        Parameters: string[]
        Returns: bool
    }

let private isGenerated (m: MemberInfo) =
    m.IsDefined(typeof<CompilerGeneratedAttribute>, false)
    // fields of records and cases of unions
    || m.GetCustomAttributes<CompilationMappingAttribute>(false)
       |> Seq.exists (fun mapping ->
           match mapping.SourceConstructFlags &&& SourceConstructFlags.KindMask with
           | SourceConstructFlags.Field
           | SourceConstructFlags.UnionCase -> true
           | _ -> false)

let private isUnit (t: Type) = t = typeof<unit> || t = typeof<Void>

/// The members of a type that are written in the source; what it overrides is documented in the base type.
let private members (t: Type) : Member seq =
    let isData = FSharpType.IsRecord t || FSharpType.IsUnion t

    seq {
        for m in t.GetMembers everything do
            let found (parameters: ParameterInfo[]) (isOperator: bool) (returns: bool) =
                {
                    Owner = shortName t
                    Name = $"{shortName t}.{m.Name}"
                    Key = key m parameters
                    Type =
                        match m with
                        | :? ConstructorInfo -> Some("T:" + t.FullName.Replace('+', '.'))
                        | _ -> None
                    IsOperator = isOperator
                    Parameters =
                        parameters
                        |> Array.filter (fun p -> not (isUnit p.ParameterType))
                        |> Array.map _.Name
                    Returns = returns
                }

            match m with
            | _ when isGenerated m -> ()
            | :? PropertyInfo as p ->
                // those that the compiler adds to a union
                if
                    not (
                        FSharpType.IsUnion t
                        && (p.Name = "Tag" || p.Name.StartsWith("Is", StringComparison.Ordinal))
                    )
                then
                    found (p.GetIndexParameters()) false false
            | :? ConstructorInfo as c when not isData -> found (c.GetParameters()) false false
            | :? Reflection.MethodInfo as f ->
                let isOverride = f.GetBaseDefinition().DeclaringType <> f.DeclaringType
                let isOperator = f.Name.StartsWith("op_", StringComparison.Ordinal)

                if not isOverride && (isOperator || not f.IsSpecialName) then
                    found (f.GetParameters()) isOperator (not (isUnit f.ReturnType))
            | _ -> ()
    }

let private documentation: Lazy<IReadOnlyDictionary<string, XElement>> =
    lazy
        (let file = Path.ChangeExtension(library.Location, ".xml")
         let all = (XDocument.Load file).Root.Element(XName.Get "members").Elements()

         dict [ for one in all -> one.Attribute(XName.Get "name").Value, one ]
         |> Dictionary
         :> _)

let private says =
    Regex(@"\b(rejects?|rejected|refuses?|refused|raises?|raised|throws?|thrown)\b", RegexOptions.IgnoreCase)

let private isKnown (exceptionName: string) =
    exceptionName.StartsWith("T:", StringComparison.Ordinal)
    && (let name = exceptionName.Substring 2
        not (isNull (library.GetType name)) || not (isNull (Type.GetType name)))

/// What a member lacks: "summary", "param x", "returns", "exception".
let private lacks (m: Member) : string list =
    let find (key: string) =
        match documentation.Value.TryGetValue key with
        | true, found -> Some found
        | _ -> None

    match find m.Key |> Option.orElse (Option.bind find m.Type) with
    | None -> [ "summary" ]
    | Some found ->
        let elements (name: string) = found.Elements(XName.Get name)
        let hasText (e: XElement) = not (String.IsNullOrWhiteSpace e.Value)
        let named (attribute: string) (e: XElement) = e.Attribute(XName.Get attribute).Value

        let described =
            elements "param" |> Seq.filter hasText |> Seq.map (named "name") |> Set.ofSeq

        let thrown =
            elements "exception"
            |> Seq.filter hasText
            |> Seq.map (named "cref")
            |> Seq.toList

        let text =
            found.Elements()
            |> Seq.filter (fun e -> e.Name.LocalName <> "exception")
            |> Seq.map _.Value
            |> String.concat " "

        [
            if not (Seq.exists hasText (elements "summary")) then
                "summary"

            if not m.IsOperator then
                for name in m.Parameters do
                    if not (described.Contains name) then
                        $"param {name}"

                for stale in Set.difference described (set m.Parameters) do
                    $"param {stale} in the code"

                if m.Returns && not (Seq.exists hasText (elements "returns")) then
                    "returns"

                if thrown.IsEmpty && says.IsMatch text then
                    "exception"

            for unknown in thrown |> List.filter (isKnown >> not) do
                $"exception {unknown} in the code"
        ]

let private publicMembers: Lazy<Member[]> =
    lazy
        (library.GetExportedTypes()
         |> Seq.collect members
         |> Seq.sortBy _.Name
         |> Seq.toArray)

[<Tests>]
let tests =
    testList
        "ApiDocs"
        [
            testCase "public functions and values are documented" (fun () ->
                let lacking =
                    [|
                        for m in publicMembers.Value do
                            match lacks m with
                            | [] -> ()
                            | missing -> m, missing
                    |]

                let count (kind: string) =
                    lacking
                    |> Seq.filter (fun (_, missing) ->
                        missing |> List.exists _.StartsWith(kind, StringComparison.Ordinal))
                    |> Seq.length

                let counts =
                    String.Join(
                        ", ",
                        [
                            for kind in [ "summary"; "param"; "returns"; "exception" ] ->
                                $"{kind} {count kind}"
                        ]
                    )

                Check.note $"public functions and values: {publicMembers.Value.Length}; lacking: {counts}"

                let offenders =
                    lacking
                    |> Array.map (fun (m, missing) -> $"""{m.Name}: {String.Join(", ", missing)}""")

                let first = String.Join('\n', Array.truncate 40 offenders)

                Expect.isEmpty
                    offenders
                    $"{offenders.Length} lack documentation ({counts}), among them:\n{first}")

            testCase
                "members of each kind are found under the names that the documentation file gives them"
                (fun () ->
                    for name in
                        [
                            // generic, of functions, an array, a method, a value, an operator
                            "Errors.reject"
                            "Tree.field"
                            "Confusion.scores"
                            "NamedTensors.Find"
                            "Tree.tensor"
                            "Score.op_Addition"
                        ] do
                        let found = publicMembers.Value |> Array.filter (fun m -> m.Name = name)
                        Expect.hasLength found 1 name
                        Expect.isTrue (documentation.Value.ContainsKey found[0].Key) found[0].Key)
        ]
