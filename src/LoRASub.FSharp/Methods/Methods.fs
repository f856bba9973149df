namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone

/// A method that can be chosen by name.
type MethodRow =
    {
        Info: MethodInfo
        /// The method over a frozen backbone, which it borrows. Rejects settings out of range.
        Create: VisionTransformer -> LoRASubSettings -> AnyMethod
    }

/// The methods that can be chosen by name: the only list of them.
[<RequireQualifiedAccess>]
module Methods =

    let private row info create = { Info = info; Create = create }

    let all: MethodRow list =
        [
            row LoRASubDrs.info (fun vit settings -> Method.hide (LoRASubDrs.method' vit settings))
            row Frozen.info (fun vit _ -> Method.hide (Frozen.method' vit))
            row SequentialLora.info (fun vit settings -> Method.hide (SequentialLora.method' vit settings))
            row SequentialLora.jointInfo (fun vit settings -> Method.hide (SequentialLora.joint vit settings))
        ]

    let names = all |> List.map _.Info.Name

    /// The method of a name. Rejects an unknown one.
    let find (name: string) : MethodRow =
        match all |> List.tryFind (fun row -> row.Info.Name = name) with
        | Some row -> row
        | None ->
            Errors.reject
                "method"
                $"""must be one of {String.concat ", " names}"""
                $"'{name}'"
                (Errors.didYouMean names name)
