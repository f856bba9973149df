namespace LoRASub.Backbone

open System
open System.IO
open System.Text.Json.Nodes
open LoRASub.Core
open LoRASub.Files

/// Networks that were trained alike.
type BackboneFamily =
    {
        /// Method and authors.
        Title: string
        /// The images that it was trained on.
        Images: string
        /// Mean and standard deviation of each channel in training, of values from 0 to 1; one number where all are alike.
        Mean: float list
        /// See `Mean`.
        Deviation: float list
        /// SPDX identifier.
        Licence: string
        /// Where the weights are described.
        Published: string
    }

/// A published plain Vision Transformer.
type KnownBackbone =
    {
        /// As `--backbone` takes it.
        Name: string
        /// How it was trained.
        Family: BackboneFamily
        /// Of the file; not reached when this table was written.
        Address: Uri
        /// Columns of a token.
        Width: int
        /// Blocks.
        Depth: int
        /// Attention heads.
        Heads: int
        /// Pixels.
        PatchSize: int
        /// Pixels of the images that its positions were made for.
        ImageSize: int
    }

/// Published backbones by name: what is known of them, and their files in the cache.
[<RequireQualifiedAccess>]
module Backbones =

    let private google images =
        {
            Title = "AugReg (Steiner et al. 2021)"
            Images = images
            Mean = [ 0.5 ]
            Deviation = [ 0.5 ]
            Licence = "Apache-2.0"
            Published = "https://github.com/google-research/vision_transformer"
        }

    let private in21k = google "ImageNet-21k"
    let private in21kIn1k = google "ImageNet-21k, then ImageNet-1k"
    let private in1k = google "ImageNet-1k"

    let private original =
        { in21k with
            Title = "ViT (Dosovitskiy et al. 2020)"
        }

    let private usual title images licence published =
        {
            Title = title
            Images = images
            Mean = [ 0.485; 0.456; 0.406 ]
            Deviation = [ 0.229; 0.224; 0.225 ]
            Licence = licence
            Published = published
        }

    let private deit =
        usual
            "DeiT (Touvron et al. 2021)"
            "ImageNet-1k"
            "Apache-2.0"
            "https://github.com/facebookresearch/deit"

    let private dino =
        usual
            "DINO (Caron et al. 2021)"
            "ImageNet-1k, without labels"
            "Apache-2.0"
            "https://github.com/facebookresearch/dino"

    let private dinov2 =
        usual
            "DINOv2 (Oquab et al. 2023)"
            "LVD-142M, without labels"
            "Apache-2.0"
            "https://github.com/facebookresearch/dinov2"

    let private mae =
        usual
            "MAE (He et al. 2021)"
            "ImageNet-1k, without labels"
            "CC-BY-NC-4.0"
            "https://github.com/facebookresearch/mae"

    let private mocoV3 =
        usual
            "MoCo v3 (Chen et al. 2021)"
            "ImageNet-1k, without labels"
            "CC-BY-NC-4.0"
            "https://github.com/facebookresearch/moco-v3"

    // width, blocks, heads
    let private tiny = struct (192, 12, 3)
    let private small = struct (384, 12, 6)
    let private base' = struct (768, 12, 12)
    let private large = struct (1024, 24, 16)
    let private huge = struct (1280, 32, 16)

    let private at address name family struct (width, depth, heads) patch pixels =
        {
            Name = name
            Family = family
            Address = Uri address
            Width = width
            Depth = depth
            Heads = heads
            PatchSize = patch
            ImageSize = pixels
        }

    /// The address of a network of timm's collection on Hugging Face's hub.
    let internal hub (name: string) : string =
        $"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"

    let private timm name = at (hub name) name

    /// In Google's own storage.
    let private augreg name file =
        at $"https://storage.googleapis.com/vit_models/augreg/{file}.npz" name

    let private meta name path =
        at $"https://dl.fbaipublicfiles.com/{path}" name

    /// <summary>Every published backbone that is known by name.</summary>
    let known: KnownBackbone list =
        [
            timm "vit_tiny_patch16_224.augreg_in21k" in21k tiny 16 224
            timm "vit_small_patch32_224.augreg_in21k" in21k small 32 224
            timm "vit_small_patch16_224.augreg_in21k" in21k small 16 224
            timm "vit_base_patch32_224.augreg_in21k" in21k base' 32 224
            timm "vit_base_patch16_224.augreg_in21k" in21k base' 16 224
            timm "vit_base_patch8_224.augreg_in21k" in21k base' 8 224
            timm "vit_large_patch16_224.augreg_in21k" in21k large 16 224

            timm "vit_tiny_patch16_224.augreg_in21k_ft_in1k" in21kIn1k tiny 16 224
            timm "vit_tiny_patch16_384.augreg_in21k_ft_in1k" in21kIn1k tiny 16 384
            timm "vit_small_patch32_224.augreg_in21k_ft_in1k" in21kIn1k small 32 224
            timm "vit_small_patch32_384.augreg_in21k_ft_in1k" in21kIn1k small 32 384
            timm "vit_small_patch16_224.augreg_in21k_ft_in1k" in21kIn1k small 16 224
            timm "vit_small_patch16_384.augreg_in21k_ft_in1k" in21kIn1k small 16 384
            timm "vit_base_patch32_224.augreg_in21k_ft_in1k" in21kIn1k base' 32 224
            timm "vit_base_patch32_384.augreg_in21k_ft_in1k" in21kIn1k base' 32 384
            timm "vit_base_patch16_224.augreg_in21k_ft_in1k" in21kIn1k base' 16 224
            timm "vit_base_patch16_384.augreg_in21k_ft_in1k" in21kIn1k base' 16 384
            timm "vit_base_patch8_224.augreg_in21k_ft_in1k" in21kIn1k base' 8 224
            timm "vit_large_patch16_224.augreg_in21k_ft_in1k" in21kIn1k large 16 224
            timm "vit_large_patch16_384.augreg_in21k_ft_in1k" in21kIn1k large 16 384

            timm "vit_small_patch16_224.augreg_in1k" in1k small 16 224
            timm "vit_small_patch16_384.augreg_in1k" in1k small 16 384
            timm "vit_base_patch32_224.augreg_in1k" in1k base' 32 224
            timm "vit_base_patch32_384.augreg_in1k" in1k base' 32 384
            timm "vit_base_patch16_224.augreg_in1k" in1k base' 16 224
            timm "vit_base_patch16_384.augreg_in1k" in1k base' 16 384

            timm "vit_base_patch16_224.orig_in21k" original base' 16 224
            timm "vit_large_patch32_224.orig_in21k" original large 32 224
            timm "vit_huge_patch14_224.orig_in21k" original huge 14 224

            timm "deit_tiny_patch16_224.fb_in1k" deit tiny 16 224
            timm "deit_small_patch16_224.fb_in1k" deit small 16 224
            timm "deit_base_patch16_224.fb_in1k" deit base' 16 224
            timm "deit_base_patch16_384.fb_in1k" deit base' 16 384

            timm "vit_small_patch16_224.dino" dino small 16 224
            timm "vit_small_patch8_224.dino" dino small 8 224
            timm "vit_base_patch16_224.dino" dino base' 16 224
            timm "vit_base_patch8_224.dino" dino base' 8 224

            timm "vit_small_patch14_dinov2.lvd142m" dinov2 small 14 518
            timm "vit_base_patch14_dinov2.lvd142m" dinov2 base' 14 518
            timm "vit_large_patch14_dinov2.lvd142m" dinov2 large 14 518

            timm "vit_base_patch16_224.mae" mae base' 16 224
            timm "vit_large_patch16_224.mae" mae large 16 224
            timm "vit_huge_patch14_224.mae" mae huge 14 224

            // its ViT-S has 12 heads
            meta
                "moco_v3_vit_small"
                "moco-v3/vit-s-300ep/vit-s-300ep.pth.tar"
                mocoV3
                (struct (384, 12, 12))
                16
                224
            meta "moco_v3_vit_base" "moco-v3/vit-b-300ep/vit-b-300ep.pth.tar" mocoV3 base' 16 224

            for name, file, size, patch in
                [
                    "Ti_16", "aug_none-wd_0.03-do_0.0-sd_0.0", tiny, 16
                    "S_32", "aug_light1-wd_0.03-do_0.0-sd_0.0", small, 32
                    "S_16", "aug_light1-wd_0.03-do_0.0-sd_0.0", small, 16
                    "B_32", "aug_medium1-wd_0.03-do_0.0-sd_0.0", base', 32
                    "B_16", "aug_medium1-wd_0.1-do_0.0-sd_0.0", base', 16
                    "B_8", "aug_medium1-wd_0.1-do_0.0-sd_0.0", base', 8
                    "L_16", "aug_medium1-wd_0.1-do_0.1-sd_0.1", large, 16
                ] do
                augreg $"{name}-i21k" $"{name}-i21k-300ep-lr_0.001-{file}" in21k size patch 224
        ]

    /// <summary>Parameters of a network, by the sizes of a plain Vision Transformer.</summary>
    /// <param name="backbone">Any.</param>
    /// <returns>Their number, without a classifier and layer scales; a float32 file has four bytes for each.</returns>
    let parameters (backbone: KnownBackbone) : int64 =
        let d, p = int64 backbone.Width, int64 backbone.PatchSize
        let tokens = 1L + pown (int64 backbone.ImageSize / p) 2
        let patches = 3L * p * p * d + d
        let block = 12L * d * d + 13L * d
        patches + d + tokens * d + int64 backbone.Depth * block + 2L * d

    /// A backbone of a name; None where none is known by it.
    let internal tryFind (name: string) : KnownBackbone option =
        known |> List.tryFind (fun one -> one.Name = name)

    /// Advice where no backbone has a name.
    let internal meant (name: string) : string =
        let names = known |> List.map _.Name

        match names |> List.tryFind _.StartsWith(name, StringComparison.Ordinal) with
        | Some one when name.Length >= 3 -> $"did you mean {one}?"
        | _ -> Errors.didYouMean names name

    /// Another host for Hugging Face's files, as its own programs take it.
    let internal addressOf (backbone: KnownBackbone) : Uri =
        match Environment.GetEnvironmentVariable "HF_ENDPOINT", backbone.Address.Host with
        | null, _
        | "", _ -> backbone.Address
        | endpoint, "huggingface.co" ->
            match Uri.TryCreate(endpoint.TrimEnd '/' + backbone.Address.AbsolutePath, UriKind.Absolute) with
            | true, address -> address
            | _ -> Errors.reject "HF_ENDPOINT" "must be an https address" $"'{endpoint}'" "unset it"
        | _ -> backbone.Address

    let private extension (backbone: KnownBackbone) =
        match Path.GetExtension backbone.Address.LocalPath with
        | ".tar" -> ".pth"
        | other -> other

    /// Where backbones are kept unless another folder is given.
    let internal cache () : string = Cache.folder "backbones"

    let internal path (folder: string) (backbone: KnownBackbone) : string =
        Path.Combine(folder, backbone.Name + extension backbone)

    let private card (backbone: KnownBackbone) : JsonNode =
        let numbers = Json.array Json.float

        Json.object
            [
                "mean", numbers backbone.Family.Mean
                "std", numbers backbone.Family.Deviation
                "image-size", Json.int backbone.ImageSize
                "heads", Json.int backbone.Heads
                "norm-epsilon", Json.float 1e-6
            ]

    /// Rejects a file that is not the network that a row of the table describes.
    let private requireNetwork (backbone: KnownBackbone) (path: string) =
        let header = TensorFormats.header path
        let selection = Weights.select path (header.Entries |> Seq.map _.Name)
        let width = Weights.width header

        if width <> backbone.Width || selection.Depth <> backbone.Depth then
            Errors.reject
                path
                $"must be {backbone.Name}, of width {backbone.Width} with {backbone.Depth} blocks"
                $"width {width}, {selection.Depth} blocks"
                "the published file has changed"

    /// Downloads a backbone into a folder, with its lock and its card, unless it is there. Rejects as `Download.file`, and
    /// a file that is not the network.
    let internal get options (folder: string) (backbone: KnownBackbone) onProgress : Download.Fetched =
        WholeFile.makeFolder folder

        let path = path folder backbone

        // whoever changed a card keeps it
        let ensureCard () =
            if not (File.Exists(WeightsCard.path path)) then
                Json.write (WeightsCard.path path) (card backbone)

        let accept part =
            requireNetwork backbone part
            ensureCard ()

        let fetch () =
            let fetched =
                Download.file
                    options
                    backbone.Name
                    Download.unknown
                    (addressOf backbone)
                    path
                    accept
                    onProgress

            ensureCard ()
            fetched

        if File.Exists path then
            fetch ()
        else
            use _ = Download.alone folder (Path.GetFileName path)
            fetch ()

    /// `resolve` without a look at the file.
    let internal find (given: string) : string =
        if String.IsNullOrWhiteSpace given || Path.Exists given then
            given
        else
            match tryFind given with
            | Some backbone ->
                let path = path (cache ()) backbone

                if not (File.Exists path) then
                    Errors.reject
                        $"backbone {given}"
                        "must be downloaded first"
                        $"no file {path}"
                        $"run: lorasub backbone get {given}"

                path
            | None when given.IndexOfAny [| '/'; '\\' |] < 0 ->
                match meant given with
                | "" -> given
                | meant ->
                    Errors.reject
                        $"backbone '{given}'"
                        "must be a file, or a name of lorasub backbone list"
                        "neither"
                        meant
            | None -> given

    /// The file of `find` by its full path, and its SHA-256. Reads the file once. Rejects as `resolve` and `Weights.sha256`.
    let internal identified (given: string) : struct (string * string) =
        let found = find given
        let sha256 = Weights.sha256 found
        FileLock.require found sha256
        struct (Path.GetFullPath found, sha256)

    /// <summary>The file of a backbone that is given by its path or by its name.</summary>
    /// <param name="given">The path of a file, or the name of one of `known` that was downloaded with
    /// `lorasub backbone get`. A file comes before a name.</param>
    /// <returns>The path of the file; what is neither is returned as it is, so that its reader rejects it.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The named backbone was not downloaded, its file is not the one that
    /// was downloaded, or the text is close to a name.</exception>
    let resolve (given: string) : string =
        let found = find given

        if found <> given then
            FileLock.check found

        found
