/// An HTTP server on this machine whose answers a test writes byte by byte, so that it can break every rule.
module LoRASub.Tests.LoopbackServer

open System
open System.Collections.Concurrent
open System.IO
open System.Net
open System.Net.Sockets
open System.Text
open System.Threading

type Request =
    {
        Path: string
        /// Names in lower case.
        Headers: Map<string, string>
    }

    /// The first byte that is asked for.
    member this.From =
        this.Headers.TryFind "range"
        |> Option.map (fun range -> int64 (range.Replace("bytes=", "").TrimEnd '-'))

type Answer =
    {
        Status: string
        Headers: (string * string) list
        Body: byte[]
        /// Whether the connection stays open after the body, without another byte.
        Stalls: bool
    }

let answer status headers body =
    {
        Status = status
        Headers = headers
        Body = body
        Stalls = false
    }

/// The whole body with its length.
let whole headers (body: byte[]) =
    answer "200 OK" (("Content-Length", string body.Length) :: headers) body

let redirect (location: string) headers =
    answer "302 Found" (("Location", location) :: ("Content-Length", "0") :: headers) [||]

/// As a server of files answers: the rest of the content where its tag is the client's.
let ofFile (tag: string) (content: byte[]) (request: Request) : Answer =
    let isSame = request.Headers.TryFind "if-range" = Some tag
    let tagged = [ "ETag", tag ]

    match request.From with
    | Some from when isSame && from >= content.LongLength ->
        answer
            "416 Range Not Satisfiable"
            [ "Content-Range", $"bytes */{content.Length}"; "Content-Length", "0" ]
            [||]
    | Some from when isSame ->
        let range = $"bytes {from}-{content.Length - 1}/{content.Length}"

        { whole (("Content-Range", range) :: tagged) content[int from ..] with
            Status = "206 Partial Content"
        }
    | _ -> whole tagged content

/// The answer without the end of its body.
let broken (length: int) (answer: Answer) =
    { answer with
        Body = Array.truncate length answer.Body
    }

/// Each connection is one request and its answer, which the number of the request, from 0, may decide.
type LoopbackServer(reply: int -> Request -> Answer) =
    let listener = new TcpListener(IPAddress.Loopback, 0)
    let requests = ConcurrentQueue<Request>()
    let ended = new CancellationTokenSource()

    let serve (client: TcpClient) =
        use client = client
        use stream = client.GetStream()
        use reader = new StreamReader(stream, Encoding.ASCII, false, 1024, leaveOpen = true)
        let path = (reader.ReadLine().Split ' ')[1]

        let headers =
            Seq.initInfinite (fun _ -> reader.ReadLine())
            |> Seq.takeWhile (String.IsNullOrEmpty >> not)
            |> Seq.map (fun line ->
                let at = line.IndexOf ':'
                line[.. at - 1].ToLowerInvariant(), line[at + 1 ..].Trim())
            |> Map.ofSeq

        let request = { Path = path; Headers = headers }
        let number = requests.Count
        requests.Enqueue request
        let answer = reply number request
        let text = StringBuilder($"HTTP/1.1 {answer.Status}\r\n")

        for name, value in answer.Headers do
            text.Append($"{name}: {value}\r\n") |> ignore

        text.Append("Connection: close\r\n\r\n") |> ignore
        stream.Write(ReadOnlySpan(Encoding.ASCII.GetBytes(string text)))
        stream.Write(ReadOnlySpan answer.Body)

        if answer.Stalls then
            ended.Token.WaitHandle.WaitOne() |> ignore

    let listen () =
        try
            while true do
                let client = listener.AcceptTcpClient()

                Thread(
                    (fun () ->
                        try
                            serve client
                        with
                        | :? IOException
                        | :? SocketException -> ()),
                    IsBackground = true
                )
                    .Start()
        with
        // stopped
        | :? SocketException
        | :? ObjectDisposedException
        | :? InvalidOperationException -> ()

    do
        listener.Start()
        Thread(listen, IsBackground = true).Start()

    member _.Address(path: string) =
        Uri $"http://127.0.0.1:{(listener.LocalEndpoint :?> IPEndPoint).Port}/{path}"

    /// So far, in order.
    member _.Requests = List.ofSeq requests

    interface IDisposable with
        member _.Dispose() =
            ended.Cancel()
            listener.Stop()
