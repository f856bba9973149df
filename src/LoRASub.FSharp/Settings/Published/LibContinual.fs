namespace LoRASub.Settings

open LoRASub.Settings.ConfigSection

/// LibContinual's YAML for this method.
[<RequireQualifiedAccess>]
module internal LibContinual =

    let private keys =
        PublishedProtocol.words
            "dataset data_root init_cls_num inc_cls_num total_cls_num task_num image_size
             init_epoch epoch batch_size setting train_trfms test_trfms optimizer backbone
             classifier buffer seed"

    let private ignored =
        PublishedProtocol.words
            "val_per_epoch testing_times testing_per_task lr_scheduler n_gpu device_ids
             deterministic num_workers workers pin_memory save_path log_level log_interval
             log_name tag stage warmup task_counts buffer.name buffer.kwargs"

    let private classifierKeys =
        PublishedProtocol.words "init_cls_num inc_cls_num task_num embd_dim fc_lrate margin_inter lambada"

    /// The configuration in a file of this format. Rejects what this method does not support.
    let read (root: Section) : ConfigFile =
        let classifier, optimizer, backbone, buffer =
            root.Section "classifier",
            root.Section "optimizer",
            root.Section "backbone",
            root.Section "buffer"

        let method, adam, network =
            classifier.Section "kwargs", optimizer.Section "kwargs", backbone.Section "kwargs"

        root.Find "includes"
        |> Option.iter (fun f ->
            f.Refuse "must be a whole configuration in one file" "write the included keys into it")

        classifier.Needed "name" "must name the method, LoRAsub_DRS"
        |> Some
        |> mustBe "LoRAsub_DRS" ", the method of this program"

        only classifierKeys method
        mustBe "Adam" ", the optimizer of this method" (optimizer.Find "name")
        only [ "lr"; "weight_decay"; "betas"; "eps"; "amsgrad" ] adam
        mustBe "vit_pt_imnet" ", a plain Vision Transformer" (backbone.Find "name")
        mustBe "MultiHeadAttention_LoRA_Sub" "" (network.Find "attn_layer")
        mustBe "true" ", as the backbone is never trained" (network.Find "pretrained")
        mustBe "task-agnostic" ", as prediction is over all classes seen" (root.Find "setting")

        for s in [ root; buffer; buffer.Section "kwargs" ] do
            PublishedProtocol.noExemplars s

        // given twice in published files
        for name in [ "init_cls_num"; "inc_cls_num"; "task_num" ] do
            match root.Find name, method.Find name with
            | Some outer, Some inner when outer.Text <> inner.Text ->
                inner.Refuse $"must be {outer.Text}, as in {outer.Source}" ""
            | _ -> ()

        let data = PublishedProtocol.data root
        let preset = PublishedProtocol.preset Variant.LibContinual data

        let protocol, classes =
            PublishedProtocol.tasks root "init_cls_num" "inc_cls_num" (Some "total_cls_num") "task_num"

        let stray =
            List.concat
                [
                    root.Except keys
                    optimizer.Except [ "name"; "kwargs" ]
                    classifier.Except [ "name"; "kwargs" ]
                    backbone.Except [ "name"; "kwargs" ]
                    network.Except [ "model_name"; "lora_rank"; "attn_layer"; "pretrained" ]
                    buffer.Except []
                ]

        {
            Path = root.File
            Format = ConfigFormat.LibContinual
            Settings =
                [
                    says "variant" "libcontinual" $"{root.File} (LibContinual's format)"
                    says "seed" "1993" "LibContinual's default"
                    data
                    yield! assign "data-path" (root.Find "data_root")
                    yield! protocol
                    yield! PublishedProtocol.epochs preset root "init_epoch" "epoch"
                    yield! assign "batch" (root.Find "batch_size")
                    yield! Torchvision.settings preset root
                    yield! assign "lr" (adam.Find "lr")
                    yield! assign "weight-decay" (adam.Find "weight_decay")
                    yield!
                        adam.Find "betas"
                        |> assignPair (fun first second -> [ "adam-beta1", first; "adam-beta2", second ])
                    yield! assign "adam-epsilon" (adam.Find "eps")
                    yield! assign "amsgrad" (adam.Find "amsgrad")
                    yield! assign "rank" (network.Find "lora_rank")
                    yield! assign "head-lr" (method.Find "fc_lrate")
                    yield! assign "margin" (method.Find "margin_inter")
                    yield! assign "triplet-weight" (method.Find "lambada")
                ]
            Seeds = root.Find "seed" |> Option.map seedsOf
            Notes =
                [
                    yield! PublishedProtocol.elsewhere (root.Find "data_root")
                    yield!
                        network.Find "model_name"
                        |> Option.map (fun f ->
                            $"{f.Source}: the weights of {ConfigTree.shortened f.Text} are given with --backbone FILE")
                        |> Option.toList
                    yield! PublishedProtocol.unused root.File ignored keys stray
                ]
            Expected =
                {
                    File = root.File
                    Classes = classes
                    Width = method.Find "embd_dim" |> Option.map _.Count
                    Heads = None
                }
        }
