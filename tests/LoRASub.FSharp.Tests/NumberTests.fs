/// What the library calls of TorchSharp must not make scalars of its own: see `Number`.
module LoRASub.Tests.NumberTests

open System
open System.IO
open System.Reflection.Emit
open System.Reflection.Metadata
open System.Reflection.Metadata.Ecma335
open System.Reflection.PortableExecutable
open Expecto
open LoRASub.Core
open TorchSharp

/// A method, by the name of its type, its own and its signature.
type private Method = string * string * string

let private opCodes =
    typeof<OpCodes>.GetFields()
    |> Array.map (fun field -> field.GetValue null :?> OpCode)
    |> Array.map (fun code -> code.Value, code)
    |> Map.ofArray

/// The tokens of the methods that a body calls.
let private calls (il: byte[]) : int list =
    [
        let mutable i = 0

        while i < il.Length do
            let code =
                if il[i] = 0xFEuy then
                    i <- i + 1
                    opCodes[int16 (0xFE00 ||| int il[i])]
                else
                    opCodes[int16 il[i]]

            i <- i + 1

            let size =
                match code.OperandType with
                | OperandType.InlineNone -> 0
                | OperandType.ShortInlineBrTarget
                | OperandType.ShortInlineI
                | OperandType.ShortInlineVar -> 1
                | OperandType.InlineVar -> 2
                | OperandType.InlineI8
                | OperandType.InlineR -> 8
                | OperandType.InlineSwitch -> 4 + 4 * BitConverter.ToInt32(il, i)
                | _ -> 4

            if code.OperandType = OperandType.InlineMethod then
                BitConverter.ToInt32(il, i)

            i <- i + size
    ]

/// The bytes of a method's signature that name types differ between files, so types are told by their last names.
type private Names() =
    interface ISignatureTypeProvider<string, obj> with
        member _.GetPrimitiveType code = string code

        member _.GetTypeFromDefinition(reader, handle, _) =
            reader.GetString (reader.GetTypeDefinition handle).Name

        member _.GetTypeFromReference(reader, handle, _) =
            reader.GetString (reader.GetTypeReference handle).Name

        member this.GetTypeFromSpecification(reader, context, handle, _) =
            (reader.GetTypeSpecification handle).DecodeSignature(this, context)

        member _.GetSZArrayType element = element + "[]"
        member _.GetArrayType(element, _) = element + "[,]"
        member _.GetByReferenceType element = element + "&"
        member _.GetPointerType element = element + "*"
        member _.GetPinnedType element = element
        member _.GetModifiedType(_, plain, _) = plain
        member _.GetFunctionPointerType _ = "function"
        member _.GetGenericMethodParameter(_, index) = $"!!{index}"
        member _.GetGenericTypeParameter(_, index) = $"!{index}"

        member _.GetGenericInstantiation(generic, arguments) =
            $"""{generic}<{String.Join(",", arguments)}>"""

let private signature (found: MethodSignature<string>) = String.Join(",", found.ParameterTypes)

/// The methods of TorchSharp that make a scalar, themselves or through another.
let private makingScalars () : Set<Method> =
    use file = new PEReader(File.OpenRead typeof<torch.Tensor>.Assembly.Location)
    let reader = file.GetMetadataReader()

    let key row : Method =
        let found = reader.GetMethodDefinition(MetadataTokens.MethodDefinitionHandle row)
        let owner = reader.GetTypeDefinition(found.GetDeclaringType())

        reader.GetString owner.Name,
        reader.GetString found.Name,
        signature (found.DecodeSignature(Names(), null))

    let called =
        [|
            for row in 1 .. reader.MethodDefinitions.Count do
                let address =
                    (reader.GetMethodDefinition(MetadataTokens.MethodDefinitionHandle row))
                        .RelativeVirtualAddress

                if address <> 0 then
                    // the table of definitions is 06
                    (file.GetMethodBody address).GetILBytes()
                    |> calls
                    |> List.choose (fun token -> if token >>> 24 = 6 then Some(token &&& 0xFFFFFF) else None)
                    |> fun rows -> row, rows
        |]

    let isScalars row =
        let owner, _, _ = key row
        owner = nameof Scalar || owner = nameof ScalarExtensionMethods

    let rec grow (found: Set<int>) =
        let more =
            called
            |> Array.filter (fun (row, rows) ->
                not (found.Contains row)
                && not (isScalars row)
                && rows |> List.exists found.Contains)
            |> Array.map fst
            |> Set.ofArray

        if more.IsEmpty then found else grow (found + more)

    let ways =
        [ 1 .. reader.MethodDefinitions.Count ]
        |> List.filter (fun row ->
            let _, name, _ = key row
            isScalars row && List.contains name [ "op_Implicit"; ".ctor"; "ToScalar" ])
        |> Set.ofList

    grow ways - ways |> Set.map key

/// The methods of other assemblies that the library calls.
let private calledByUs () : Set<Method> =
    use file = new PEReader(File.OpenRead typeof<Precision>.Assembly.Location)
    let reader = file.GetMetadataReader()

    [
        for handle in reader.MemberReferences do
            let found = reader.GetMemberReference handle

            if
                found.GetKind() = MemberReferenceKind.Method
                && found.Parent.Kind = HandleKind.TypeReference
            then
                let owner = reader.GetTypeReference(TypeReferenceHandle.op_Explicit found.Parent)

                reader.GetString owner.Name,
                reader.GetString found.Name,
                signature (found.DecodeMethodSignature(Names(), null))
    ]
    |> Set.ofList

[<Tests>]
let tests =
    testList
        "Number"
        [
            testCase "TorchSharp's methods that make scalars are found"
            <| fun () ->
                let found = makingScalars ()
                Expect.isTrue (found.Contains(("Tensor", "add", "Tensor"))) "add of a tensor"
                Expect.isFalse (found.Contains(("Tensor", "sub", "Tensor"))) "sub of a tensor"

            testCase "the library calls none of them"
            <| fun () ->
                let ours = calledByUs ()
                Expect.isTrue (ours.Contains(("Tensor", "sub", "Tensor"))) "the calls are read"

                Expect.equal
                    (Set.intersect ours (makingScalars ()))
                    Set.empty
                    "calls that make a scalar; see Number"
        ]
