namespace LoRASub.Files

open System
open System.IO
open System.Collections.Generic
open System.Text.Json
open LoRASub.Core

/// Hugging Face's index of a network in several files, such as model.safetensors.index.json: a JSON object whose
/// "weight_map" names the file of each tensor, in the same folder.
[<RequireQualifiedAccess>]
module internal ShardIndex =

    let private fileName (path: string) (name: string) =
        let isPlain =
            name <> ""
            && name <> "."
            && name <> ".."
            && name.IndexOfAny [| '/'; '\\'; ':'; '\000' |] < 0

        if not isPlain then
            Errors.reject
                path
                "must name files of its own folder"
                $"'{TensorBytes.shown name}'"
                "do not use it, or correct the name"

        name

    /// The file's name of each tensor.
    let private weightMap (path: string) : Map<string, string> =
        let what = "an index of shards, with an object 'weight_map' of file names"

        Json.read what path (fun json ->
            let seen = HashSet<string>(StringComparer.Ordinal)

            Map.ofList
                [
                    for one in json.GetProperty("weight_map").EnumerateObject() do
                        if not (seen.Add one.Name) then
                            Errors.reject
                                (TensorBytes.tensorOf path one.Name)
                                "must be there once"
                                "twice"
                                ""

                        if one.Value.ValueKind <> JsonValueKind.String then
                            Errors.reject
                                (TensorBytes.tensorOf path one.Name)
                                "must have a file's name"
                                "another value"
                                ""

                        one.Name, fileName path (one.Value.GetString())
                ])

    let private inFolder (path: string) (name: string) =
        let file = Path.Combine(Path.GetDirectoryName(Path.GetFullPath path), name)

        if not (File.Exists file) then
            Errors.reject
                file
                $"must be beside the index that names it, {Path.GetFileName path}"
                "no such file"
                "download all files again, of one version"

        file

    /// Each file with the names of its tensors.
    let private shards (path: string) : (string * Set<string>)[] =
        weightMap path
        |> Map.toArray
        |> Array.groupBy snd
        |> Array.map (fun (file, some) -> inFolder path file, some |> Array.map fst |> Set.ofArray)

    /// The files that an index names.
    let files (path: string) : string list =
        shards path |> Array.map fst |> List.ofArray

    let private checkNames (path: string) (file: string) (expected: Set<string>) (header: TensorFileHeader) =
        let actual = header.Entries |> Array.map _.Name |> Set.ofArray

        let refuse name rule received =
            Errors.reject
                (TensorBytes.tensorOf file name)
                rule
                received
                "download all files again, of one version"

        match Seq.tryHead (expected - actual), Seq.tryHead (actual - expected) with
        | Some name, _ -> refuse name $"must be there, as {path} says" "no tensor of this name"
        | _, Some name -> refuse name $"must be in the index {path}" "another name"
        | None, None -> ()

    /// Names, types and shapes of all shards, each read by `header`. Rejects an index that names another folder, and a
    /// shard that does not hold what the index says.
    let header (header: string -> TensorFileHeader) (path: string) : TensorFileHeader =
        let parts =
            shards path
            |> Array.map (fun (file, expected) ->
                let part = header file
                checkNames path file expected part
                part)

        {
            Path = path
            Entries = parts |> Array.collect _.Entries
            // that of the first shard comes first
            Metadata =
                Array.foldBack
                    (fun part all -> Map.fold (fun m k v -> Map.add k v m) all part.Metadata)
                    parts
                    Map.empty
        }

    /// The wanted tensors of all shards, each read by `readOnly`; owned by the caller.
    let readOnly
        (header: string -> TensorFileHeader)
        (readOnly: (string -> bool) -> string -> TensorFile)
        (wanted: string -> bool)
        (path: string)
        : TensorFile =
        Scope.keep Safetensors.leaves (fun () ->
            {
                Path = path
                Tensors =
                    shards path
                    |> Array.collect (fun (file, expected) ->
                        checkNames path file expected (header file)
                        Map.toArray (readOnly wanted file).Tensors)
                    |> Map.ofArray
                Metadata = Map.empty
            })
