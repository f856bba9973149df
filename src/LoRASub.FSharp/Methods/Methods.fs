namespace LoRASub.Methods

open LoRASub.Core
open LoRASub.Backbone

/// A method that can be chosen by name.
type MethodRow =
    {
        /// Its name and what it stores.
        Info: MethodInfo
        /// Settings by name in place of those of LoRA-Sub-DRS: the published learning rates.
        Defaults: (string * string) list
        /// The settings of `LoRASubSettings` that it reads, by name. The others change nothing.
        Uses: string list
        /// The method over a frozen backbone, which it borrows, for so many tasks. Rejects settings out of range.
        Create: VisionTransformer -> int -> LoRASubSettings -> AnyMethod
    }

/// The methods that can be chosen by name: the only list of them.
[<RequireQualifiedAccess>]
module Methods =

    let private adam =
        [ "weight-decay"; "adam-beta1"; "adam-beta2"; "adam-epsilon"; "amsgrad" ]

    let private rates = [ "lr"; "head-lr" ]
    let private lora = "rank" :: rates @ adam

    let private row info uses create =
        {
            Info = info
            Defaults = []
            Uses = uses
            Create = create
        }

    let private at network classifier row =
        { row with
            Defaults = [ "lr", network; "head-lr", classifier ]
        }

    /// <summary>Every method that has a name.</summary>
    let all: MethodRow list =
        [
            row
                LoRASubDrs.info
                (lora
                 @ [
                     "b-init"
                     "margin"
                     "triplet-weight"
                     "norm-order"
                     "energy"
                     "update-scale"
                     "projection"
                     "subtraction"
                     "triplet"
                 ])
                (fun vit _ settings -> Method.hide (LoRASubDrs.method' vit settings))
            row Frozen.info [] (fun vit _ _ -> Method.hide (Frozen.method' vit))
            row SequentialLora.info ("b-init" :: lora) (fun vit _ settings ->
                Method.hide (SequentialLora.method' vit settings))
            row SequentialLora.jointInfo ("b-init" :: lora) (fun vit _ settings ->
                Method.hide (SequentialLora.joint vit settings))
            row FirstSession.info ("b-init" :: lora) (fun vit _ settings ->
                Method.hide (FirstSession.method' vit settings))
            row NullSpaceLora.info ("b-init" :: "energy" :: lora) (fun vit _ settings ->
                Method.hide (NullSpaceLora.methodWith { Energy = settings.Energy } vit settings))
            row InfLora.info lora (fun vit tasks settings ->
                Method.hide (InfLora.methodWith { InfLora.published with Tasks = tasks } vit settings))
            |> at "5e-4" "5e-4"
            row SdLora.info ("rank" :: rates) (fun vit _ settings ->
                SdLora.method'
                    vit
                    { SdLora.published with
                        Rank = settings.Rank
                    })
            |> at "8e-3" "8e-3"
            row E2Lora.info rates (fun vit _ _ -> E2Lora.method' vit E2Lora.published)
            |> at "5e-4" "0.01"
            row RanPac.info rates (fun vit _ _ -> RanPac.method' vit RanPac.published)
            |> at "0.01" "0.01"
            row Ease.info rates (fun vit _ _ -> Ease.method' vit Ease.published)
            |> at "0.025" "0.025"
        ]

    /// <summary>Their names.</summary>
    let names = all |> List.map _.Info.Name

    /// <summary>A method's settings in place of those of LoRA-Sub-DRS.</summary>
    /// <param name="name">One of `names`; none for another name.</param>
    /// <returns>Names and texts.</returns>
    let defaults (name: string) : (string * string) list =
        all |> List.filter (fun row -> row.Info.Name = name) |> List.collect _.Defaults

    /// The setting that leaves the choice between `Frozen` and `FirstSession` to validation on the first task.
    [<Literal>]
    let Auto = "auto"

    /// <summary>The method of a name.</summary>
    /// <param name="name">One of `names`.</param>
    /// <returns>The row of the method.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no method of this name.</exception>
    let find (name: string) : MethodRow =
        match all |> List.tryFind (fun row -> row.Info.Name = name) with
        | Some row -> row
        | None ->
            Errors.reject
                "method"
                $"""must be one of {String.concat ", " names}"""
                $"'{name}'"
                (Errors.didYouMean names name)
