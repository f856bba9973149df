module LoRASub.Tests.CsvTests

open System
open System.Globalization
open System.IO
open System.Threading
open LoRASub.Measure
open LoRASub.Run
open LoRASub.Report
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators

let private property name law = property "Csv" name law

// A reader of RFC 4180, character by character.
let private parse (text: string) : string list list =
    let rec plain field fields rows =
        function
        | [] when field = "" && List.isEmpty fields -> List.rev rows
        | [] -> failtest "the last line has no end"
        | ',' :: rest -> start (field :: fields) rows rest
        | '\r' :: '\n' :: rest -> start [] (List.rev (field :: fields) :: rows) rest
        | ('"' | '\r' | '\n') :: _ -> failtest "a bare quote or line end"
        | c :: rest -> plain (field + string c) fields rows rest

    and quoted field fields rows =
        function
        | '"' :: '"' :: rest -> quoted (field + "\"") fields rows rest
        | '"' :: ',' :: rest -> start (field :: fields) rows rest
        | '"' :: '\r' :: '\n' :: rest -> start [] (List.rev (field :: fields) :: rows) rest
        | '"' :: _ -> failtest "text after a closing quote"
        | c :: rest -> quoted (field + string c) fields rows rest
        | [] -> failtest "an open quote"

    and start fields rows =
        function
        | '"' :: rest -> quoted "" fields rows rest
        | rest -> plain "" fields rows rest

    start [] [] (List.ofSeq text)

type Table =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 5)>]
        Rows: int
        [<Between(2, 5)>]
        Columns: int
    }

    member c.Fields =
        let alphabet = "ab ,\"\r\n;ä'"
        let random = Random c.Seed

        List.init c.Rows (fun _ ->
            List.init c.Columns (fun _ ->
                String(Array.init (random.Next 6) (fun _ -> alphabet[random.Next alphabet.Length]))))

let private matrix: AccuracyMatrix =
    [|
        [| { Correct = 1; Total = 3 } |]
        [| { Correct = 0; Total = 3 }; { Correct = 1; Total = 2 } |]
    |]

let private scores: ClassScore[] =
    [|
        {
            Position = 0
            Label = 4
            Name = "dog, large"
            Task = 0
            Score = { Correct = 2; Total = 3 }
        }
        {
            Position = 1
            Label = 0
            Name = "a \"cat\""
            Task = 1
            Score = { Correct = 0; Total = 0 }
        }
    |]

[<Tests>]
let tests =
    testList
        "Csv"
        [
            testCase "commas, quotes and line ends are quoted, quotes doubled" (fun () ->
                Expect.equal
                    (Csv.table [ [ "a"; "b,c" ]; [ "d\"e"; "f\ng" ]; [ ""; "h i" ]; [ "j\rk"; "=1" ] ])
                    "a,\"b,c\"\r\n\"d\"\"e\",\"f\ng\"\r\n,h i\r\n\"j\rk\",=1\r\n"
                    "table")

            property "any text comes back through a reader of RFC 4180" (fun (c: Table) ->
                Expect.equal (parse (Csv.table (c.Fields |> Seq.map Seq.ofList))) c.Fields "fields")

            testCase "accuracy.csv: empty above the diagonal, all seen last" (fun () ->
                Expect.equal
                    (Csv.accuracy matrix)
                    "task,task0,task1,seen\r\n0,33.3333333333,,33.3333333333\r\n1,0,50,20\r\n"
                    "table")

            testCase "classes.csv: a class without test images has no accuracy" (fun () ->
                Expect.equal
                    (Csv.classes scores)
                    "position,label,name,task,correct,total,accuracy\r\n0,4,\"dog, large\",0,2,3,66.6666666667\r\n1,0,\"a \"\"cat\"\"\",1,0,0,\r\n"
                    "table")

            testCase "confusion.csv: true classes down, predicted ones across" (fun () ->
                Expect.equal
                    (Csv.confusion
                        (scores |> Array.map _.Name)
                        {
                            Counts = [| [| 2; 1 |]; [| 0; 0 |] |]
                        })
                    "position,name,0,1\r\n0,\"dog, large\",2,1\r\n1,\"a \"\"cat\"\"\",0,0\r\n"
                    "table")

            testCase "numbers do not follow the machine's language" (fun () ->
                let before = Thread.CurrentThread.CurrentCulture
                // a comma for the point, another minus
                let other = CultureInfo.InvariantCulture.Clone() :?> CultureInfo
                other.NumberFormat.NumberDecimalSeparator <- ","
                other.NumberFormat.NegativeSign <- "~"

                try
                    let expected = Csv.accuracy matrix
                    Thread.CurrentThread.CurrentCulture <- other
                    Expect.equal (Csv.accuracy matrix) expected "table"
                finally
                    Thread.CurrentThread.CurrentCulture <- before)

            testCase "the three files are written whole" (fun () ->
                Probe.inFolder (fun folder ->
                    let confusion =
                        {
                            Counts = [| [| 2; 1 |]; [| 0; 0 |] |]
                        }

                    Csv.write folder matrix scores confusion

                    let files =
                        Directory.GetFiles folder
                        |> Array.sort
                        |> Array.map (fun path -> Path.GetFileName path, File.ReadAllText path)

                    Expect.equal
                        files
                        [|
                            "accuracy.csv", Csv.accuracy matrix
                            "classes.csv", Csv.classes scores
                            "confusion.csv", Csv.confusion (scores |> Array.map _.Name) confusion
                        |]
                        "files"))

            testCase "names are exact, whatever a spreadsheet would make of them" (fun () ->
                for name in [ "=cmd|x"; "+1"; "@a"; "-1"; "\u001B[31m"; "a\u202Eb" ] do
                    let table = Csv.classes [| { scores[0] with Name = name } |] |> parse
                    Expect.equal (List.item 2 (List.item 1 table)) name "name")

            rejects "a matrix that is none" [ "accuracy matrix" ] (fun () -> Csv.accuracy [||] |> ignore)

            rejects "too few names" [ "names of the classes"; "2"; "1" ] (fun () ->
                Csv.confusion [| "a" |] (Confusion.zero 2) |> ignore)
        ]
