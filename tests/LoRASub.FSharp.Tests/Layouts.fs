/// The published layouts of image files made small, with real files: an image's red tells its class, its green its split.
module LoRASub.Tests.Layouts

open System.IO
open LoRASub.Tests.TestFiles

type Layout =
    {
        Name: string
        Write: string -> unit
        ClassNames: string[]
        Train: int
        Test: int
        /// Whether the layout itself says which images train.
        IsSplit: bool
    }

let lines (folder: string) (name: string) (lines: string list) =
    let path = Path.Combine(folder, name)
    Directory.CreateDirectory(Path.GetDirectoryName path) |> ignore
    File.WriteAllText(path, String.concat "\n" lines + "\n")

/// An image of a class and split; each image has a size of its own.
let image (folder: string) (name: string) (label: int) (isTrained: bool) =
    let number = abs (name.GetHashCode System.StringComparison.Ordinal) % 7
    let green = if isTrained then 200 else 100

    writePicture
        (Path.Combine(folder, name))
        (plainPicture (12 + number) (20 - number) (40 * (label + 1)) green 90)

let private wnids = [ "n01443537"; "n01484850"; "n02012849" ]

/// <class>/*, five each.
let private unsplit (extension: string) (folder: string) =
    for label, wnid in List.indexed wnids do
        for i in 0..4 do
            image folder $"{wnid}/art_{i}.{extension}" label true

let private split (held: string) (folder: string) =
    for label, wnid in List.indexed wnids do
        for i in 0..2 do
            image folder $"train/{wnid}/{i}.jpg" label true

        image folder $"{held}/{wnid}/9.jpg" label false

/// Two training images and one test image of each class, the middle one first in images.txt.
let cub (folder: string) =
    let root = Path.Combine(folder, "CUB_200_2011")
    let classes = [ "001.Black_footed_Albatross"; "002.Laysan_Albatross" ]

    let images =
        [
            for i in 0..2 do
                for label, name in List.indexed classes -> label, $"{name}/Image_{i}.jpg", i <> 1
        ]

    for label, name, isTrained in images do
        image root $"images/{name}" label isTrained

    let numbered texts =
        texts |> List.mapi (fun i text -> $"{i + 1} {text}")

    lines root "classes.txt" (numbered classes)
    lines root "images.txt" (images |> List.map (fun (_, name, _) -> name) |> numbered)

    lines
        root
        "image_class_labels.txt"
        (images |> List.map (fun (label, _, _) -> string (label + 1)) |> numbered)

    lines
        root
        "train_test_split.txt"
        (images |> List.map (fun (_, _, t) -> if t then "1" else "0") |> numbered)

/// Two domains of three classes.
let domainNet (folder: string) =
    for domain in [ "sketch"; "clipart" ] do
        for split, each in [ "train", 3; "test", 2 ] do
            let entries =
                [
                    for label, name in List.indexed [ "aircraft_carrier"; "airplane"; "alarm_clock" ] do
                        for i in 1..each -> $"{domain}/{name}/{domain}_{split}_{i}.jpg", label
                ]

            for path, label in entries do
                image folder path label (split = "train")

            lines
                folder
                $"{domain}_{split}.txt"
                (entries |> List.map (fun (path, label) -> $"{path} {label}"))

let tinyImageNet (folder: string) =
    let root = Path.Combine(folder, "tiny-imagenet-200")
    let sorted = [ "n01443537"; "n01629819"; "n02012849" ]
    lines root "wnids.txt" [ sorted[1]; sorted[2]; sorted[0] ]

    lines
        root
        "words.txt"
        [
            "n00001740\tentity"
            "n01443537\tgoldfish, Carassius auratus"
            "n02012849\tcrane"
        ]

    for label, wnid in List.indexed sorted do
        for i in 0..3 do
            writePicture
                (Path.Combine(root, "train", wnid, "images", $"{wnid}_{i}.JPEG"))
                (plainPicture 64 64 (40 * (label + 1)) 200 90)

        lines root $"train/{wnid}/{wnid}_boxes.txt" [ $"{wnid}_0.JPEG\t0\t10\t63\t58" ]

    // in another order than the classes
    let annotated = [ 2; 0; 1; 0 ]

    for i, label in List.indexed annotated do
        writePicture
            (Path.Combine(root, "val", "images", $"val_{i}.JPEG"))
            (plainPicture 64 64 (40 * (label + 1)) 100 90)

    lines
        root
        "val/val_annotations.txt"
        (annotated
         |> List.mapi (fun i label -> $"val_{i}.JPEG\t{sorted[label]}\t0\t32\t44\t62"))

let all: Layout list =
    let domains = [ "clipart"; "sketch" ]
    let objects = [| "aircraft_carrier"; "airplane"; "alarm_clock" |]

    let layout name write classNames train test isSplit =
        {
            Name = name
            Write = write
            ClassNames = classNames
            Train = train
            Test = test
            IsSplit = isSplit
        }

    [
        layout "imagenet-r" (unsplit "jpg") (Array.ofList wnids) 12 3 false
        layout "imagenet-r" (split "test") (Array.ofList wnids) 9 3 true
        layout "imagenet-a" (unsplit "png") (Array.ofList wnids) 12 3 false
        layout "cub200" cub [| "Black footed Albatross"; "Laysan Albatross" |] 4 2 true
        layout "domainnet" domainNet objects 18 12 true
        layout
            "domainnet-domains"
            domainNet
            [|
                for domain in domains do
                    for name in objects -> $"{domain}/{name}"
            |]
            18
            12
            true
        layout "tiny-imagenet" tinyImageNet [| "goldfish"; "n01629819"; "crane" |] 12 4 true
        layout "folder" (split "val") (Array.ofList wnids) 9 3 true
        layout "folder" (unsplit "webp") (Array.ofList wnids) 12 3 false
    ]
