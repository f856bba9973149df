/// The web example, asked over loopback.
module LoRASub.Tests.WebTests

open System
open System.Diagnostics
open System.IO
open System.Net
open System.Net.Http
open System.Text.Json
open System.Text.RegularExpressions
open System.Threading.Tasks
open LoRASub.Fluent
open Expecto

/// Runs the example, which is built beside the tests, until `test` is over.
let private serving (folder: string) (backbone: string) (test: HttpClient -> unit) =
    let mine = "LoRASub.FSharp.Tests"
    let own = AppContext.BaseDirectory
    let at = own.LastIndexOf(mine, StringComparison.Ordinal)
    let built = own.Remove(at, mine.Length).Insert(at, "LoRASub.FSharp.Web")

    let arguments =
        [
            Path.Combine(built, "LoRASub.FSharp.Web.dll")
            folder
            backbone
            "--urls"
            "http://127.0.0.1:0"
        ]

    let info =
        ProcessStartInfo(Probe.dotnet, arguments, RedirectStandardOutput = true, RedirectStandardError = true)

    use server = Process.Start info

    try
        let errors = server.StandardError.ReadToEndAsync()

        let rec address () =
            match server.StandardOutput.ReadLine() with
            | null -> failtest $"the server ended: {errors.Result}"
            | line ->
                let found = Regex.Match(line, @"http://127\.0\.0\.1:\d+")
                if found.Success then found.Value else address ()

        use handler =
            new SocketsHttpHandler(Expect100ContinueTimeout = TimeSpan.FromMinutes 1.0)

        use http = new HttpClient(handler, BaseAddress = Uri(address ()))
        let _rest = server.StandardOutput.ReadToEndAsync()
        test http
    finally
        server.Kill true
        server.WaitForExit()

let private answer (response: Task<HttpResponseMessage>) : HttpStatusCode * string =
    use response = response.GetAwaiter().GetResult()
    response.StatusCode, response.Content.ReadAsStringAsync().Result

let private form (files: byte[] list) =
    let form = new MultipartFormDataContent()

    for file in files do
        form.Add(new ByteArrayContent(file), "images", "image.png")

    form

[<Tests>]
let tests =
    testList
        "Web"
        [
            testCase
                "many clients predict at once, a class is learned from a form, and bad requests are refused"
                (fun () ->
                    Probe.inFolder (fun folder ->
                        let backbone = Path.Combine(folder, "backbone.safetensors")
                        let saved = Path.Combine(folder, "learner")
                        Tiny.writeBackbone backbone 8 2 7
                        let data = Tiny.dataset 3 4 1
                        let train = ImageCollection(data.Train, data.ClassNames, [||])
                        let options = ClassifierOptions(Preset = "small", Epochs = 1, Rank = 2)

                        let png i =
                            let path = Path.Combine(folder, $"{i}.png")
                            TestFiles.writePicture path (data.Train.Read i)
                            File.ReadAllBytes path

                        let images = Array.init data.Train.Labels.Length png

                        let expected =
                            use classifier = ContinualClassifier.Create(backbone, options)
                            classifier.Learn(Images.OfClasses(train, [| 0; 1 |]))
                            classifier.Save saved

                            images
                            |> Array.map (fun image -> classifier.Predict(ReadOnlyMemory image).ClassName)

                        serving saved backbone (fun http ->
                            let post (path: string) content = answer (http.PostAsync(path, content))

                            let predict i =
                                task {
                                    use! response =
                                        http.PostAsync("/predict?top=2", new ByteArrayContent(images[i]))

                                    let! text = response.Content.ReadAsStringAsync()
                                    use json = JsonDocument.Parse text

                                    return
                                        [
                                            for one in (json.RootElement[0]).EnumerateArray() ->
                                                one.GetProperty("className").GetString()
                                        ]
                                }

                            let asked = Array.init 96 (fun i -> i % images.Length)
                            let found = Task.WhenAll(asked |> Array.map predict).Result

                            for i, classes in Array.zip asked found do
                                Expect.equal classes.Head expected[i] $"image {i}"
                                Expect.equal (set classes) (set data.ClassNames[..1]) "both classes"

                            let known = """["colour 0","colour 1"]"""

                            Expect.equal
                                (answer (http.GetAsync "/classes"))
                                (HttpStatusCode.OK, known)
                                "classes"

                            let third =
                                [
                                    for i in 0 .. images.Length - 1 do
                                        if data.Train.Labels[i] = 2 then
                                            images[i]
                                ]

                            let all = """["colour 0","colour 1","colour 2"]"""

                            Expect.equal
                                (post "/classes/colour%202" (form third))
                                (HttpStatusCode.OK, all)
                                "learned"

                            Expect.equal
                                (post "/classes/colour%202" (form third[..0]))
                                (HttpStatusCode.OK, all)
                                "more"

                            let code, text = post "/predict" (form third)
                            Expect.equal code HttpStatusCode.OK text

                            Expect.hasLength
                                (Regex.Matches(text, "className"))
                                third.Length
                                "one for each file"

                            for content, words in
                                [
                                    "hello"B, "must be a JPEG, PNG, WebP, BMP or GIF image"
                                    [||], "empty"
                                    ImageFileTests.png 60000 50000, "more than 100000000"
                                ] do
                                let code, text = post "/predict" (new ByteArrayContent(content))
                                Expect.equal code HttpStatusCode.BadRequest text
                                Expect.stringContains text words "the library's message"

                            // the server refuses it by its length, before it is sent
                            use request = new HttpRequestMessage(HttpMethod.Post, "/predict")
                            request.Content <- new ByteArrayContent(Array.zeroCreate 10_000_001)
                            request.Headers.ExpectContinue <- true
                            let code, _ = answer (http.SendAsync request)

                            Expect.equal code HttpStatusCode.RequestEntityTooLarge "too large"
                            let code, text = post "/predict?top=0" (new ByteArrayContent(images[0]))
                            Expect.equal code HttpStatusCode.BadRequest text)

                        use kept = ContinualClassifier.Load(saved, backbone, options)
                        Expect.sequenceEqual kept.ClassNames data.ClassNames "saved"))
        ]
