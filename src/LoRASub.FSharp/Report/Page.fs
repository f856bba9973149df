namespace LoRASub.Report

open System
open System.IO
open System.Reflection
open LoRASub.Files
open LoRASub.Settings
open LoRASub.Run
open Giraffe.ViewEngine

/// A report as one HTML page that contains everything it needs and loads nothing from the network.
[<RequireQualifiedAccess>]
module internal Page =

    // ------------------------------------------------------------------------------------------ parts

    let private embedded (assembly: Assembly) (ending: string) =
        let name =
            assembly.GetManifestResourceNames()
            |> Array.find (fun name -> name.EndsWith(ending, StringComparison.Ordinal))

        use stream = assembly.GetManifestResourceStream name
        use reader = new StreamReader(stream)
        reader.ReadToEnd()

    /// A file of this library.
    let private resource (name: string) =
        embedded (Assembly.GetExecutingAssembly()) name

    /// The charts' JavaScript, which the package Plotly.NET carries.
    let private plotly () =
        embedded typeof<Plotly.NET.Trace>.Assembly ".min.js"

    let private said (text: string) = str (Format.clean text)

    /// A user's text: its direction does not change that of its surroundings.
    let private isolated (text: string) = tag "bdi" [] [ said text ]

    let private note (text: string) =
        if text = "" then
            emptyText
        else
            p [ _class "note" ] [ isolated text ]

    let private tableView (table: Table) =
        let cell row column (content: string) =
            if column = 0 then
                th [ _scope "row" ] [ isolated content ]
            elif table.Bold.Contains(row, column) then
                td [] [ b [] [ isolated content ] ]
            else
                td [] [ isolated content ]

        let row i (cells: string[]) =
            tr
                [
                    if table.Marked.Contains i then
                        _class "marked"
                ]
                (cells |> Array.mapi (cell i) |> List.ofArray)

        div
            [
                _class "scroll"
                _tabindex "0"
                attr "role" "region"
                attr "aria-label" (Format.clean table.Title)
            ]
            [
                tag
                    "table"
                    [ _class $"table-{table.Id}" ]
                    [
                        thead
                            []
                            [ tr [] [ for name in table.Header -> th [ _scope "col" ] [ isolated name ] ] ]
                        tbody [] (table.Rows |> Array.mapi row |> List.ofArray)
                    ]
            ]

    let private block (table: Table) =
        div
            [ _class "block"; _id table.Id ]
            [ h3 [] [ isolated table.Title ]; tableView table; note table.Note ]

    let private folded (table: Table) =
        details [ _id table.Id ] [ summary [] [ isolated table.Title ]; tableView table; note table.Note ]

    let private isWide (figure: Figure) =
        match figure.Marks with
        | Marks.Bars bars -> bars.Categories.Length * bars.Series.Length > 24
        | Marks.Heatmap heatmap -> heatmap.Columns.Length > 30
        | Marks.Curves curves -> curves |> Array.exists (fun c -> c.X.Length > 150)
        | Marks.Arrows _ -> false

    let private figureView (figure: Figure) =
        tag
            "figure"
            [
                _id $"figure-{figure.Id}"
                if isWide figure then
                    _class "wide"
            ]
            [
                h3 [] [ isolated figure.Title ]
                div
                    [ _class "scroll" ]
                    [
                        div
                            [
                                _class "chart"
                                attr "role" "img"
                                attr "aria-label" (Format.clean $"Chart: {figure.Title}. {figure.Caption}")
                                attr "data-figure" figure.Id
                            ]
                            []
                    ]
                figcaption [] [ isolated figure.Caption ]
            ]

    // ------------------------------------------------------------------------------------------ samples

    // more pictures add little and make the file large
    [<Literal>]
    let private MostSamples = 24

    /// One test image with the answer of each group; true for a correct one.
    let private sampleView (groups: RunGroup[]) (name: int -> string) (truth: int) (png: string) answers =
        let line (word: string) (text: string) =
            span [] [ small [] [ said word ]; isolated (Format.shorten 40 text) ]

        let mark isCorrect =
            if isCorrect then "✓ correct" else "✗ wrong"

        li
            [ _class (if Array.forall snd answers then "correct" else "wrong") ]
            [
                img
                    [
                        _src $"data:image/png;base64,{png}"
                        _alt (Format.clean $"Test image of {Format.shorten 80 (name truth)}")
                    ]
                p
                    []
                    [
                        line "true " (name truth)
                        for group, (predicted, isCorrect) in Array.zip groups answers do
                            if groups.Length > 1 then
                                line $"{mark isCorrect} in " group.Name
                            else
                                b [] [ said (mark isCorrect) ]

                            if not isCorrect then
                                line "predicted " (name predicted)
                    ]
            ]

    /// The images that the first runs of all groups have kept, wrong answers first.
    let private samples (heading: string) (groups: RunGroup[]) : XmlNode list =
        let files = groups |> Array.choose (_.Runs >> Array.tryPick _.Classes)
        let names (file: ClassesFile) = file.Classes |> Array.map _.Name

        if
            files.Length < groups.Length
            || files |> Array.exists (fun other -> names other <> names files[0])
        then
            []
        else
            let file = files[0]

            let answer (sample: SampleLine) =
                // several positions can have one label, as in domain-incremental learning
                sample.Predicted, file.Classes[sample.True].Label = file.Classes[sample.Predicted].Label

            let answers =
                files
                |> Array.map (fun file -> Map.ofArray [| for s in file.Samples -> s.Png, answer s |])

            let shared =
                [|
                    for sample in file.Samples |> Array.distinctBy _.Png do
                        let all = answers |> Array.choose (Map.tryFind sample.Png)

                        if all.Length = files.Length then
                            sample, all
                |]

            let correct, wrong = shared |> Array.partition (snd >> Array.forall snd)
            let half = MostSamples / 2
            // each side takes the room that the other does not need
            let wrong = Array.truncate (max half (MostSamples - correct.Length)) wrong
            let shown = Array.append wrong (Array.truncate (MostSamples - wrong.Length) correct)

            let seeds =
                if groups |> Array.forall (fun group -> group.Runs.Length = 1) then
                    ""
                else
                    " of the first seed"

            if shown.Length = 0 then
                []
            else
                [
                    div
                        [ _class "block" ]
                        [
                            h3 [] [ isolated heading ]
                            ul
                                [ _class "samples" ]
                                [
                                    for sample, answers in shown ->
                                        sampleView
                                            groups
                                            (fun i -> file.Classes[i].Name)
                                            sample.True
                                            sample.Png
                                            answers
                                ]
                            note
                                $"{shown.Length} of {shared.Length} saved test images{seeds}, wrong answers first; the proportion of wrong ones does not reflect the accuracy."
                        ]
                ]

    /// The same images for all groups or, where they have none in common, those of each group.
    let private sampleBlocks (groups: RunGroup[]) =
        match samples "Sample predictions" groups with
        | [] when groups.Length > 1 ->
            groups
            |> List.ofArray
            |> List.collect (fun group -> samples $"Sample predictions: {group.Name}" [| group |])
        | found -> found

    // ------------------------------------------------------------------------------------------ page

    let private anchor (section: string) =
        section.ToLowerInvariant().Replace(' ', '-')

    let private notes (groups: RunGroup[]) =
        [
            for group in groups do
                let texts =
                    [
                        yield! group.Notes
                        for run in group.Runs do
                            for text in run.Notes do
                                if group.Runs.Length = 1 then
                                    text
                                else
                                    $"seed {run.Seed}: {text}"
                    ]

                if not texts.IsEmpty then
                    div
                        [ _class "block" ]
                        [
                            if groups.Length > 1 then
                                h3 [] [ isolated group.Name ]
                            ul [] [ for text in texts -> li [] [ isolated text ] ]
                        ]
        ]

    let private pageTitle (groups: RunGroup[]) =
        groups
        |> Array.map _.Name
        |> String.concat " · "
        |> Format.shorten 120
        |> Format.clean

    let private headerView (groups: RunGroup[]) =
        let kind =
            if groups.Length = 1 then
                "report of a run"
            else
                $"comparison of {groups.Length} runs"

        let unfinished =
            groups
            |> Array.filter (fun group -> group.Runs |> Array.exists (fun run -> not run.Finished))
            |> Array.map _.Name
            |> String.concat ", "

        let warning (text: string) =
            p [ _class "warning"; attr "role" "note" ] [ isolated text ]

        header
            []
            [
                div
                    [ _class "top" ]
                    [
                        p [ _class "kind" ] [ said $"Class-incremental learning: {kind}" ]
                        button [ _type "button"; _id "theme"; attr "aria-pressed" "false" ] [ str "Dark" ]
                    ]
                h1 [] [ isolated (pageTitle groups) ]
                if groups.Length = 1 then
                    p [ _class "verdict" ] [ isolated (Tables.verdict groups[0]) ]
                else
                    ul
                        [ _class "verdict" ]
                        [
                            for group in groups ->
                                li
                                    []
                                    [ b [] [ isolated group.Name ]; str " "; isolated (Tables.verdict group) ]
                        ]
                match Protocol.warning groups with
                | Some text -> warning text
                | None -> ()
                if unfinished <> "" then
                    warning $"Not finished: {unfinished}. This report shows what is written so far."
            ]

    // No source but this page itself: a browser that obeys this loads nothing from the network.
    let private policy =
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

    /// JSON that may stand inside a script element: no "</" and no "<!--" in it.
    let private data (id: string) (value: 'T) =
        let json = (Json.ofRecord value).ToJsonString().Replace("<", "\\u003C")
        script [ _type "application/json"; _id id ] [ rawText json ]

    /// The page for one group of runs or, side by side, several. Needs at least one.
    let html (groups: RunGroup[]) : string =
        let figures = Figures.all groups

        let figuresOf section =
            match figures |> Array.filter (fun f -> f.Section = section) with
            | [||] -> []
            | found -> [ div [ _class "figures" ] (found |> Array.map figureView |> List.ofArray) ]

        let tables view (found: Table option list) =
            found |> List.choose id |> List.map view

        let sections =
            [
                "Results",
                tables
                    block
                    [
                        Some(Tables.results groups)
                        Tables.heads groups
                        Tables.differences groups
                        Tables.settingDifferences groups
                    ]
                Section.accuracy, figuresOf Section.accuracy
                Section.drift, figuresOf Section.drift
                Section.subspace, figuresOf Section.subspace
                Section.classes, figuresOf Section.classes @ sampleBlocks groups
                Section.training, figuresOf Section.training @ tables block [ Tables.seconds groups ]
                "Settings and environment",
                tables folded [ Tables.settings groups; Tables.environment groups ]
                "Notes", notes groups
            ]
            |> List.filter (snd >> List.isEmpty >> not)

        let sectionView (name: string, content) =
            section
                [ _id (anchor name); attr "aria-labelledby" $"h-{anchor name}" ]
                (h2 [ _id $"h-{anchor name}" ] [ said name ] :: content)

        let meta' name content = meta [ _name name; _content content ]

        html
            [ _lang "en" ]
            [
                head
                    []
                    [
                        meta [ _charset "utf-8" ]
                        meta [ _httpEquiv "Content-Security-Policy"; _content policy ]
                        meta' "viewport" "width=device-width, initial-scale=1"
                        meta' "color-scheme" "light dark"
                        meta' "generator" "lorasub report"
                        link [ _rel "icon"; _href "data:," ]
                        title [] [ said (pageTitle groups) ]
                        style [] [ rawText (resource "report.css") ]
                    ]
                body
                    []
                    [
                        a [ _class "skip"; _href "#results" ] [ str "Skip to the results" ]
                        headerView groups
                        nav
                            [ attr "aria-label" "Contents" ]
                            [
                                ul
                                    []
                                    [
                                        for name, _ in sections ->
                                            li [] [ a [ _href $"#{anchor name}" ] [ said name ] ]
                                    ]
                            ]
                        main [] (List.map sectionView sections)
                        footer
                            []
                            [
                                p [] [ str "Made by lorasub report from the files of the run." ]
                                details
                                    [ _id "licences" ]
                                    [
                                        summary [] [ str "Licence of plotly.js, which draws the charts" ]
                                        pre [ _tabindex "0" ] [ said (resource "plotly.LICENSE") ]
                                    ]
                            ]
                        noscript [] [ note "The charts need JavaScript; tables and captions do not." ]
                        data "figures" figures
                        data "themes" Palette.themes
                        script [] [ rawText (plotly ()) ]
                        script [] [ rawText (resource "report.js") ]
                    ]
            ]
        |> RenderView.AsString.htmlDocument
