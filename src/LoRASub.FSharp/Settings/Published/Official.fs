namespace LoRASub.Settings

open LoRASub.Settings.ConfigSection

/// The JSON of the method's authors.
[<RequireQualifiedAccess>]
module internal Official =

    let private keys =
        PublishedProtocol.words
            "dataset data_path memory_size memory_per_class shuffle seed init_cls increment
             total_sessions model_name net_type embd_dim num_heads EPSILON init_epoch optim
             init_lr init_weight_decay epochs fc_lrate lrate batch_size weight_decay rank
             margin_inter lambada"

    let private ignored =
        PublishedProtocol.words
            "prefix fixed_memory init_lr_decay lrate_decay init_milestones milestones num_workers
             device"

    /// The configuration in a file of this format. Rejects what this method does not support.
    let read (root: Section) : ConfigFile =
        mustBe "lorasub_drs" ", the method of this program" (root.Find "model_name")
        mustBe "sip" ", a plain Vision Transformer" (root.Find "net_type")
        mustBe "Adam" ", the optimizer of this method" (root.Find "optim")
        PublishedProtocol.noExemplars root

        root.Find "EPSILON"
        |> Option.iter (fun f ->
            if f.Number <> 1e-8 then
                f.Refuse "must be 1e-8, which prediction adds to the length of a feature" "")

        // one value serves every task here
        let same first later =
            match root.Find first, root.Find later with
            | Some a, Some b when a.Number <> b.Number ->
                a.Refuse $"must be {b.Text}, as {later}: one value serves every task" ""
            | a, b -> Option.orElse a b

        let data = PublishedProtocol.data root
        let preset = PublishedProtocol.preset Variant.Official data

        let protocol, classes =
            PublishedProtocol.tasks root "init_cls" "increment" None "total_sessions"

        let seeds = root.Find "seed" |> Option.map seedsOf

        let classOrder =
            root.Find "shuffle"
            |> Option.map (fun f ->
                let order =
                    match f.Text, seeds with
                    | "false", _ -> "natural"
                    | "true", Some([| 1993L |], _) -> "seed1993"
                    | "true", _ ->
                        f.Refuse
                            "must be false, or true with the one seed 1993"
                            "set it to false, and give --class-order FILE for another order"
                    | _ -> f.Refuse "must be true or false" ""

                says "class-order" order f.Source)

        {
            Path = root.File
            Format = ConfigFormat.Official
            Settings =
                [
                    says "variant" "official" $"{root.File} (the authors' format)"
                    data
                    yield! assign "data-path" (root.Find "data_path")
                    yield! protocol
                    yield! Option.toList classOrder
                    yield! PublishedProtocol.epochs preset root "init_epoch" "epochs"
                    yield! assign "batch" (root.Find "batch_size")
                    yield! assign "rank" (root.Find "rank")
                    yield! assign "lr" (same "init_lr" "lrate")
                    yield! assign "head-lr" (root.Find "fc_lrate")
                    yield! assign "margin" (root.Find "margin_inter")
                    yield! assign "triplet-weight" (root.Find "lambada")
                    yield! assign "weight-decay" (same "init_weight_decay" "weight_decay")
                ]
            Seeds = seeds
            Notes =
                [
                    yield! PublishedProtocol.elsewhere (root.Find "data_path")
                    yield! PublishedProtocol.unused root.File ignored keys (root.Except keys)
                ]
            Expected =
                {
                    File = root.File
                    Classes = classes
                    Width = root.Find "embd_dim" |> Option.map _.Count
                    Heads = root.Find "num_heads" |> Option.map _.Count
                }
        }
