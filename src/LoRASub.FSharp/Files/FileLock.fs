namespace LoRASub.Files

open System
open System.IO
open System.Security.Cryptography
open LoRASub.Core

/// What was downloaded, in a file beside it: later downloads and uses are checked against it.
type FileLock =
    {
        /// As the table of downloads calls it.
        Name: string
        /// Where it was asked for.
        Address: string
        /// Its length.
        Bytes: int64
        /// In lower-case hexadecimal.
        Sha256: string
        /// Of the download, in UTC.
        Date: string
    }

/// Locks of downloaded files.
[<RequireQualifiedAccess>]
module internal FileLock =

    /// The lock beside a file.
    let path (file: string) : string = file + ".lock.json"

    /// The lock of a file; None where there is none. Rejects a damaged one.
    let tryRead (file: string) : FileLock option =
        let path = path file

        if File.Exists path then
            Some(Json.load<FileLock> "the lock of a download" path)
        else
            None

    let private refuse (file: string) (what: string) (found: string) =
        Errors.reject
            file
            $"must be the file that {path file} describes, {what}"
            found
            "delete it and download it again"

    /// Rejects a file whose hash is not the one that its lock states; one without a lock is accepted.
    let require (file: string) (sha256: string) : unit =
        match tryRead file with
        | Some lock when lock.Sha256 <> sha256 -> refuse file $"with the SHA-256 {lock.Sha256}" sha256
        | _ -> ()

    /// Rejects a file that is not the one that its lock describes; one without a lock is accepted.
    let check (file: string) : unit =
        match tryRead file with
        | None -> ()
        | Some lock ->
            try
                use stream = File.OpenRead file

                if stream.Length <> lock.Bytes then
                    refuse file $"of {lock.Bytes} bytes" $"{stream.Length}"

                require file (Convert.ToHexStringLower(SHA256.HashData stream))
            with
            | :? IOException
            | :? UnauthorizedAccessException as e -> Errors.reject file "must be readable" e.Message ""

/// Where downloads are kept.
[<RequireQualifiedAccess>]
module internal Cache =

    let private variable (name: string) =
        match Environment.GetEnvironmentVariable name with
        | null
        | "" -> None
        | value -> Some value

    /// LORASUB_CACHE, or else a folder of this program's among the user's caches. Rejects a user without a home.
    let private root () : string =
        let home folder =
            Environment.GetFolderPath(folder, Environment.SpecialFolderOption.DoNotVerify)

        match variable "LORASUB_CACHE" with
        | Some folder -> Path.GetFullPath folder
        | None ->
            let caches =
                if not (OperatingSystem.IsLinux()) then
                    home Environment.SpecialFolder.LocalApplicationData
                else
                    // the specification ignores relative paths
                    match variable "XDG_CACHE_HOME" |> Option.filter Path.IsPathRooted, variable "HOME" with
                    | Some caches, _ -> caches
                    | None, Some home -> Path.Combine(home, ".cache")
                    | None, None -> ""

            if caches = "" then
                Errors.reject "LORASUB_CACHE" "must name a folder where the user has no home" "none" "set it"

            Path.Combine(caches, "lorasub")

    /// The folder of one kind of downloads, whether or not it exists.
    let folder (kind: string) : string = Path.Combine(root (), kind)
