namespace LoRASub.Files

open System
open System.Globalization
open System.IO
open System.Net
open System.Net.Http
open System.Net.Http.Headers
open System.Security.Cryptography
open System.Threading
open LoRASub.Core

/// A hash that a file must have.
type internal Checksum =
    {
        Algorithm: HashAlgorithmName
        /// In lower-case hexadecimal; a beginning is enough.
        Hex: string
        /// Who stated it, for errors.
        Source: string
    }

/// What is known of a file.
type internal FileClaims =
    {
        Bytes: int64 option
        Checksums: Checksum list
    }

/// How patient a download is.
type internal DownloadOptions =
    {
        /// Before each further try; all of them again after progress.
        Pauses: TimeSpan list
        /// For an answer, and for the next bytes.
        Patience: TimeSpan
        /// Receives what is tried, and why it is tried again.
        Note: string -> unit
    }

/// Files from the network: resumed where they stopped, checked against what the server states, and seen under their
/// names only when whole.
[<RequireQualifiedAccess>]
module internal Download =

    /// For downloads by people.
    let patient: DownloadOptions =
        {
            Pauses = [ for seconds in [ 1.0; 2.0; 4.0; 8.0 ] -> TimeSpan.FromSeconds seconds ]
            Patience = TimeSpan.FromSeconds 60.0
            Note = ignore
        }

    let unknown: FileClaims = { Bytes = None; Checksums = [] }

    let sha256 (source: string) (hex: string) : Checksum =
        {
            Algorithm = HashAlgorithmName.SHA256
            Hex = hex
            Source = source
        }

    let md5 (source: string) (hex: string) : Checksum =
        {
            Algorithm = HashAlgorithmName.MD5
            Hex = hex
            Source = source
        }

    [<Literal>]
    let private MostRedirects = 10

    /// Stops a server that never stops.
    let private mostBytes = 1L <<< 35

    /// So much progress makes a failure a new one.
    let private progressBytes = 1L <<< 20

    /// Without what is signed into it.
    let private shown (address: Uri) : string =
        if address.IsAbsoluteUri then
            address.GetLeftPart UriPartial.Path
        else
            Text.cut "..." 80 (string address)

    /// Rejects an address that is not encrypted, unless it never leaves this machine; and one that leads away from
    /// encryption.
    let requireSafe (from: Uri option) (address: Uri) : unit =
        let isEncrypted (address: Uri) = address.Scheme = Uri.UriSchemeHttps

        let isLocal =
            address.Scheme = Uri.UriSchemeHttp
            && address.IsLoopback
            && not (Option.exists isEncrypted from)

        if not (isEncrypted address || isLocal) || address.UserInfo <> "" then
            match from with
            | Some from ->
                Errors.reject
                    (shown from)
                    "must lead to an https address without a password"
                    (shown address)
                    "do not download it from there"
            | None ->
                Errors.reject (shown address) "must be an https address without a password" address.Scheme ""

    let private isHex (length: int) (text: string) =
        text.Length = length && Seq.forall Char.IsAsciiHexDigit text

    let private header (name: string) (response: HttpResponseMessage) : string list =
        match response.Headers.TryGetValues name with
        | true, values -> values |> Seq.collect _.Split(',') |> Seq.map _.Trim() |> List.ofSeq
        | _ -> []

    /// What a server says of the file: Hugging Face's hub in the redirect to it, Google's storage with it.
    let private stated (address: Uri) (response: HttpResponseMessage) : FileClaims =
        let host = address.Host

        {
            Bytes =
                header "X-Linked-Size" response
                |> List.tryPick (fun text ->
                    match Int64.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture) with
                    | true, bytes -> Some bytes
                    | _ -> None)
            Checksums =
                [
                    for tag in header "X-Linked-Etag" response do
                        let hex = tag.Trim('"').ToLowerInvariant()

                        if isHex 64 hex then
                            sha256 host hex

                    for hash in header "x-goog-hash" response do
                        let bytes = Array.zeroCreate<byte> 16

                        match hash.Split('=', 2) with
                        | [| "md5"; text |] when Convert.TryFromBase64String(text, Span bytes) = (true, 16) ->
                            md5 host (Convert.ToHexStringLower bytes)
                        | _ -> ()
                ]
        }

    /// Rejects two lengths of one file.
    let private both (address: Uri) (known: FileClaims) (more: FileClaims) : FileClaims =
        match known.Bytes, more.Bytes with
        | Some bytes, Some other when bytes <> other ->
            Errors.reject
                (shown address)
                $"must send the file of {bytes} bytes that was announced"
                $"{other} bytes"
                "the published file may have changed, or a proxy answers in its place"
        | _ -> ()

        {
            Bytes = Option.orElse more.Bytes known.Bytes
            Checksums = known.Checksums @ more.Checksums
        }

    let private clientFor (options: DownloadOptions) (address: Uri) : HttpClient =
        let handler =
            new SocketsHttpHandler(
                AllowAutoRedirect = false,
                UseCookies = false,
                UseProxy = not address.IsLoopback,
                ConnectTimeout = options.Patience
            )

        let client = new HttpClient(handler, Timeout = Timeout.InfiniteTimeSpan)
        client.DefaultRequestHeaders.UserAgent.Add(ProductInfoHeaderValue("lorasub", "1.0"))
        client.DefaultRequestHeaders.AcceptEncoding.Add(StringWithQualityHeaderValue "identity")
        client

    let private isRedirect (response: HttpResponseMessage) =
        List.contains (int response.StatusCode) [ 301; 302; 303; 307; 308 ]

    /// The answer after all redirects, and what every server on the way says of the file.
    let private ask
        (client: HttpClient)
        (patience: TimeSpan)
        (prepare: HttpRequestMessage -> unit)
        (first: Uri)
        =
        let rec follow (left: int) (claims: FileClaims) (address: Uri) =
            use request = new HttpRequestMessage(HttpMethod.Get, address)
            prepare request
            use limit = new CancellationTokenSource(patience)

            let response =
                client.Send(request, HttpCompletionOption.ResponseHeadersRead, limit.Token)

            try
                let claims = both address claims (stated address response)

                match isRedirect response, response.Headers.Location with
                | true, null -> Errors.reject (shown address) "must say where it redirects to" "no address" ""
                | true, _ when left = 0 ->
                    Errors.reject
                        (shown first)
                        $"must answer after at most {MostRedirects} redirects"
                        $"one more, from {shown address}"
                        "the address has changed, or needs a login; download the file with a browser"
                | true, location ->
                    let next = Uri(address, location)
                    requireSafe (Some address) next
                    response.Dispose()
                    follow (left - 1) claims next
                | _ -> struct (response, claims)
            with _ ->
                response.Dispose()
                reraise ()

        follow MostRedirects unknown first

    let private partPath (path: string) = path + ".part"
    let private statePath (path: string) = path + ".part.json"

    /// The bytes that are kept from an earlier download. Nobody else may write them meanwhile. Rejects a folder that
    /// cannot be written.
    let private openPart (path: string) : FileStream =
        let part = partPath path

        try
            // without a buffer, an interrupted program leaves every byte that it received
            new FileStream(part, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None, 0)
        with
        | :? IOException as e when WholeFile.isLocked e ->
            Errors.reject path "must be downloaded once at a time" "another download of it" "wait for it"
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject path "must be in a folder that can be written" e.Message ""

    /// By which the server recognises the file that the bytes are of; None where they are of another address.
    let private validatorOf (path: string) (address: Uri) : string option =
        let state = statePath path

        try
            if File.Exists state then
                Json.read "the state of a download" state (fun json ->
                    if json.GetProperty("address").GetString() = string address then
                        Option.ofObj (json.GetProperty("validator").GetString())
                    else
                        None)
            else
                None
        with :? InputException ->
            // the bytes are downloaded again
            None

    let private validator (response: HttpResponseMessage) : string option =
        match response.Headers.ETag, response.Content.Headers.LastModified with
        | tag, _ when not (isNull tag) && not tag.IsWeak -> Some tag.Tag
        | null, date when date.HasValue -> Some(date.Value.ToString("R", CultureInfo.InvariantCulture))
        | _ -> None

    let private rejectMore (address: Uri) (bytes: int64) =
        Errors.reject (shown address) $"must send {bytes} bytes" "more" "a proxy may answer in its place"

    /// Appends a body to the file: Ok when it ends where it should, or why it did not.
    let private receive patience address (body: Stream) (file: FileStream) (total: int64 option) onProgress =
        let buffer = Array.zeroCreate<byte> 131072
        let most = defaultArg total mostBytes

        let read () =
            use limit = new CancellationTokenSource(patience: TimeSpan)
            body.ReadAsync(Memory buffer, limit.Token).AsTask().GetAwaiter().GetResult()

        let write (count: int) =
            try
                file.Write(buffer, 0, count)
            with :? IOException as e ->
                Errors.reject
                    file.Name
                    "must fit on its disk"
                    e.Message
                    "make room and run the same command again, which continues"

        let rec next () : Result<unit, string> =
            match read (), total with
            | 0, Some total when file.Length < total ->
                Error $"the connection ended after {file.Length} of {total} bytes"
            | 0, _ -> Ok()
            | count, _ when file.Length + int64 count > most -> rejectMore address most
            | count, _ ->
                write count
                onProgress file.Length total
                next ()

        next ()

    /// Whether a later try may succeed.
    let private isPassing (status: HttpStatusCode) =
        int status >= 500
        || status = HttpStatusCode.TooManyRequests
        || status = HttpStatusCode.RequestTimeout

    let private statusOf (response: HttpResponseMessage) =
        Text.cut "..." 80 $"{int response.StatusCode} {response.ReasonPhrase}"

    /// What to do where the file cannot be had from here.
    let private byHand (path: string) =
        $"download it with a browser, save it as {path}, and run the same command again"

    let private refuse (address: Uri) (path: string) (response: HttpResponseMessage) =
        let advice =
            match response.StatusCode with
            | HttpStatusCode.Unauthorized
            | HttpStatusCode.Forbidden -> $"it needs a login or an accepted licence: {byHand path}"
            | HttpStatusCode.NotFound
            | HttpStatusCode.Gone ->
                $"the file is no longer there: look for its new address on its publisher's page, and {byHand path}"
            | _ -> byHand path

        Errors.reject (shown address) "must answer with the file" (statusOf response) advice

    /// One try: what the servers say of the file that is now complete, or why it is not.
    let private attempt
        options
        client
        (expected: FileClaims)
        (address: Uri)
        path
        (file: FileStream)
        onProgress
        =
        let kept = validatorOf path address |> Option.filter (fun _ -> file.Length > 0L)

        let prepare (request: HttpRequestMessage) =
            match kept with
            | Some validator ->
                request.Headers.Range <- RangeHeaderValue(Nullable file.Length, Nullable())
                request.Headers.TryAddWithoutValidation("If-Range", validator) |> ignore
            | None -> ()

        let restart () =
            file.SetLength 0L
            WholeFile.discard (statePath path)

        try
            let struct (response, claims) = ask client options.Patience prepare address
            use response = response
            let claims = both address expected claims

            let body (claims: FileClaims) =
                if Option.exists (fun bytes -> bytes > mostBytes) claims.Bytes then
                    Errors.reject
                        (shown address)
                        $"must send at most {mostBytes} bytes"
                        $"{claims.Bytes.Value}"
                        ""

                file.Seek(0L, SeekOrigin.End) |> ignore
                use body = response.Content.ReadAsStream()

                receive options.Patience address body file claims.Bytes onProgress
                |> Result.map (fun () -> claims)

            let length (bytes: Nullable<int64>) =
                both
                    address
                    claims
                    { unknown with
                        Bytes = Option.ofNullable bytes
                    }

            let range = response.Content.Headers.ContentRange

            let isRest () =
                not (isNull range)
                && range.From = Nullable file.Length
                // some servers do not look at If-Range
                && (isNull response.Headers.ETag || kept = validator response)

            match response.StatusCode with
            | HttpStatusCode.PartialContent when kept.IsSome && isRest () -> body (length range.Length)
            | HttpStatusCode.RequestedRangeNotSatisfiable when
                kept.IsSome && not (isNull range) && range.Length = Nullable file.Length
                ->
                Ok claims
            | HttpStatusCode.PartialContent
            | HttpStatusCode.RequestedRangeNotSatisfiable ->
                restart ()
                Error "the file changed while it was downloaded"
            | HttpStatusCode.OK ->
                restart ()

                match validator response with
                | Some validator ->
                    Json.write
                        (statePath path)
                        (Json.object
                            [
                                "address", Json.text (string address)
                                // the server's ETag, or its date of the file
                                "validator", Json.text validator
                            ])
                | None -> ()

                body (length response.Content.Headers.ContentLength)
            | status when isPassing status -> Error(statusOf response)
            | _ -> refuse address path response
        with
        | :? HttpIOException as e when e.HttpRequestError = HttpRequestError.ResponseEnded ->
            Error $"the connection ended after {file.Length} bytes"
        | :? OperationCanceledException -> Error $"no answer for {options.Patience.TotalSeconds} seconds"
        | :? HttpRequestException
        | :? IOException as e -> Error e.Message

    /// Tries until the file is complete.
    let private persist
        options
        (address: Uri)
        (path: string)
        (file: FileStream)
        (attempt: unit -> Result<FileClaims, string>)
        =
        let rec next (pauses: TimeSpan list) =
            let before = file.Length

            match attempt (), pauses with
            | Ok claims, _ -> claims
            | Error why, _ when file.Length >= before + progressBytes -> again why options.Pauses
            | Error why, pauses -> again why pauses

        and again why pauses =
            match pauses with
            | [] ->
                let continues =
                    if file.Length = 0L then
                        ""
                    else
                        $", which continues after {file.Length} bytes"

                Errors.reject
                    (shown address)
                    "must send the whole file"
                    why
                    $"check the network and run the same command again{continues}; or {byHand path}"
            | pause :: pauses ->
                options.Note $"{why}; trying again in {pause.TotalSeconds} s"
                Thread.Sleep(pause: TimeSpan)
                next pauses

        options.Note $"connecting to {address.Host} ..."
        next options.Pauses

    /// The SHA-256 of a complete file. Rejects one that is not as it was announced, with the advice that `remove` gives.
    let private verified
        (path: string)
        (claims: FileClaims)
        (remove: unit -> string)
        (file: FileStream)
        : string =
        let hash algorithm =
            file.Position <- 0L
            Convert.ToHexStringLower(CryptographicOperations.HashData(algorithm, file))

        let refuse rule received =
            Errors.reject path rule received (remove ())

        match claims.Bytes with
        | Some bytes when file.Length <> bytes -> refuse $"must have {bytes} bytes" $"{file.Length}"
        | _ -> ()

        for checksum in claims.Checksums do
            let received = hash checksum.Algorithm

            if not (received.StartsWith(checksum.Hex, StringComparison.Ordinal)) then
                let begins =
                    if checksum.Hex.Length = received.Length then
                        ""
                    else
                        " that begins with"

                refuse
                    $"must have the {checksum.Algorithm.Name}{begins} {checksum.Hex}, as {checksum.Source} states"
                    received

        hash HashAlgorithmName.SHA256

    /// A file as it is on this machine.
    type Fetched =
        {
            Lock: FileLock
            /// Whether its lock was written now.
            IsNew: bool
            /// Who stated a checksum that it has; empty where nobody did.
            CheckedBy: string list
        }

    /// Claims what is downloaded into a folder under a name, so that no other process downloads or unpacks the same.
    /// Rejects what is claimed, and a folder that cannot be written.
    let alone (folder: string) (name: string) : IDisposable =
        try
            new FileStream(
                Path.Combine(folder, $".lorasub-{name}.tmp"),
                FileMode.OpenOrCreate,
                FileAccess.ReadWrite,
                FileShare.None,
                1,
                FileOptions.DeleteOnClose
            )
        with
        | :? IOException as e when WholeFile.isLocked e ->
            Errors.reject
                (Path.Combine(folder, name))
                "must be downloaded once at a time"
                "another download of it"
                "wait for it, and run the same command again"
        | :? UnauthorizedAccessException
        | :? IOException as e -> Errors.reject folder "must be a folder that can be written" e.Message ""

    // Takes a file that someone else has put there.
    let private adopt (path: string) (claims: FileClaims) (accept: string -> unit) : struct (int64 * string) =
        try
            use file = File.OpenRead path

            let hash =
                verified path claims (fun () -> "move it away, and download it again") file

            accept path
            struct (file.Length, hash)
        with
        | :? IOException
        | :? UnauthorizedAccessException as e -> Errors.reject path "must be readable" e.Message ""

    /// Downloads a file that is not there, and writes its lock. One that is there is compared with its lock; without one it
    /// was put there by hand, and gets a lock if it is as it should be. `accept` gets the complete file, a download under
    /// another name, and rejects what it should not be. Rejects an unsafe address, an
    /// answer that is not the file, a file that is not as announced by the server, `expected` or an older lock, and a
    /// full disk. What was received remains where a later call continues.
    let file
        options
        name
        (expected: FileClaims)
        (address: Uri)
        (path: string)
        (accept: string -> unit)
        onProgress
        =
        requireSafe None address

        let lockOf bytes sha256 : FileLock =
            {
                Name = name
                Address = string address
                Bytes = bytes
                Sha256 = sha256
                Date = DateTime.UtcNow.ToString("yyyy-MM-ddTHH:mm:ssZ", CultureInfo.InvariantCulture)
            }

        let checkedBy (claims: FileClaims) = claims.Checksums |> List.map _.Source

        match File.Exists path, FileLock.tryRead path with
        | true, Some lock ->
            FileLock.check path

            {
                Lock = lock
                IsNew = false
                CheckedBy = [ FileLock.path path ]
            }
        | true, None ->
            let struct (bytes, hash) = adopt path expected accept
            let lock = lockOf bytes hash
            Json.save (FileLock.path path) lock

            {
                Lock = lock
                IsNew = true
                CheckedBy = checkedBy expected
            }
        | false, lock ->
            let expected =
                match lock with
                | Some lock ->
                    both
                        address
                        expected
                        {
                            Bytes = Some lock.Bytes
                            Checksums = [ sha256 (FileLock.path path) lock.Sha256 ]
                        }
                | None -> expected

            use client = clientFor options address

            let struct (claims, bytes, hash) =
                use part = openPart path

                try
                    if File.Exists path then
                        Errors.reject
                            path
                            "must be downloaded once at a time"
                            "another download that has just finished it"
                            "run the same command again"

                    let claims =
                        persist options address path part (fun () ->
                            attempt options client expected address path part onProgress)

                    let remove () =
                        // nothing of it is kept
                        part.SetLength 0L

                        "the download was removed; run the same command again; if this repeats, the published file has changed"

                    let hash = verified path claims remove part
                    part.Flush true
                    struct (claims, part.Length, hash)
                finally
                    if part.Length = 0L then
                        WholeFile.discard (partPath path)
                        WholeFile.discard (statePath path)

            let lock = lock |> Option.defaultWith (fun () -> lockOf bytes hash)

            let discard () =
                WholeFile.discard (partPath path)
                WholeFile.discard (statePath path)

            try
                accept (partPath path)
            with :? InputException ->
                discard ()
                reraise ()

            Json.save (FileLock.path path) lock
            // the file is there only when all that belongs to it is
            File.Move(partPath path, path)
            discard ()

            {
                Lock = lock
                IsNew = true
                CheckedBy = checkedBy claims
            }
