namespace LoRASub.Data

open System
open System.IO
open LoRASub.Core
open LoRASub.Files

/// A file that a data set is published in.
type internal DataFileSource =
    {
        Address: Uri
        /// In hexadecimal; None where no publication of it is known.
        Md5: string option
    }

/// How a data set is downloaded into the layout that `Datasets.load` reads.
type internal DataDownload =
    {
        /// As the settings name it.
        Name: string
        Files: DataFileSource list
        /// The folder that an archive makes, and the most that it may unpack to; None for files that are read as they
        /// are.
        Inside: (string * int64) option
    }

/// Data sets that can be downloaded.
[<RequireQualifiedAccess>]
module internal DataDownloads =

    let private file (address: string) (md5: string) =
        {
            Address = Uri address
            Md5 = if md5 = "" then None else Some md5
        }

    let private idx (folder: string) (sums: string list) =
        [
            "train-images-idx3"
            "train-labels-idx1"
            "t10k-images-idx3"
            "t10k-labels-idx1"
        ]
        |> List.map2 (fun sum name -> file $"{folder}{name}-ubyte.gz" sum) sums

    let private archive name address md5 inside gigabytes =
        {
            Name = name
            Files = [ file address md5 ]
            Inside = Some(inside, gigabytes <<< 30)
        }

    /// One row for each. The addresses were not reached when this was written; the sums are those of torchvision's and the
    /// publishers' pages.
    let all: DataDownload list =
        [
            {
                Name = "fashion-mnist"
                Files =
                    idx
                        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
                        [
                            "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
                            "25c81989df183df01b3e8a0aad5dffbe"
                            "bef4ecab320f06d8554ea6380940ec79"
                            "bb300cfdad3c16e7a12a480ee83cd310"
                        ]
                Inside = None
            }
            {
                Name = "mnist"
                Files =
                    idx
                        "https://ossci-datasets.s3.amazonaws.com/mnist/"
                        [
                            "f68b3c2dcbeaaa9fbdd348bbdeb94873"
                            "d53e105ee54ea40749a09fcbcd1e9432"
                            "9fb629c4189551a2d022fa330f9573f3"
                            "ec29112dd5afa0611ce80d1b7f02629c"
                        ]
                Inside = None
            }
            archive
                "cifar10"
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
                "c32a1d4ab5d03f1284b67883e8d87530"
                "cifar-10-batches-bin"
                1L
            archive
                "cifar100"
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
                "03b5dce01913d631647c71ecec9e9cb8"
                "cifar-100-binary"
                1L
            archive
                "imagenet-r"
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"
                ""
                "imagenet-r"
                8L
            archive
                "imagenet-a"
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"
                ""
                "imagenet-a"
                8L
            archive
                "cub200"
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
                "97eceeb196236b17998738112f37df78"
                "CUB_200_2011"
                8L
        ]

    let tryFind (name: string) : DataDownload option =
        all |> List.tryFind (fun row -> row.Name = name)

    /// Where a set is kept unless another folder is given.
    let folder (name: string) : string = Path.Combine(Cache.folder "data", name)

    let private path (folder: string) (source: DataFileSource) : string =
        Path.Combine(folder, Path.GetFileName source.Address.LocalPath)

    /// Whether a folder holds all that the row downloads.
    let isComplete (row: DataDownload) (folder: string) : bool =
        match row.Inside with
        | Some(inside, _) -> Directory.Exists(Path.Combine(folder, inside))
        | None -> row.Files |> List.forall (fun source -> File.Exists(path folder source))

    /// The folder that `Datasets.load` takes.
    let pathOf (row: DataDownload) (folder: string) : string =
        match row.Inside with
        | Some(inside, _) -> Path.Combine(folder, inside)
        | None -> folder

    /// The files of a set that was downloaded into the cache.
    let cached (name: string) : string option =
        tryFind name
        |> Option.filter (fun row -> isComplete row (folder name))
        |> Option.map (fun row -> pathOf row (folder name))

    /// Downloads what a folder lacks of a set, and unpacks it. Rejects as `Download.file` and `Unpack.tar`, and while another
    /// process does the same.
    let get
        options
        (row: DataDownload)
        (folder: string)
        (onProgress: string -> int64 -> int64 option -> unit)
        : unit =
        WholeFile.makeFolder folder
        use _ = Download.alone folder row.Name

        let fetch (source: DataFileSource) =
            let path = path folder source

            let sums =
                source.Md5 |> Option.map (Download.md5 "its publication") |> Option.toList

            let expected =
                { Download.unknown with
                    Checksums = sums
                }

            let name = Path.GetFileName path

            Download.file options row.Name expected source.Address path ignore (onProgress name)
            |> ignore

            path

        match row.Inside with
        | None -> row.Files |> List.iter (fetch >> ignore)
        | Some _ when isComplete row folder -> ()
        | Some(inside, most) ->
            for source in row.Files do
                let archive = fetch source
                Unpack.tar most archive inside (Path.Combine(folder, inside))
                // its lock stays
                File.Delete archive
