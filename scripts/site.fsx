// Makes the documentation site, artifacts/site, from docs, the tutorials among these scripts and the library's docstrings.
// dotnet fsi build.fsx -t Docs builds the library and runs this. The site is plain files: it needs no server and no network.
// --quick leaves out what the tutorials print, and so does not run them.

open System
open System.Diagnostics
open System.IO
open System.Text.RegularExpressions

let quick = Array.contains "--quick" fsi.CommandLineArgs
let root = Path.GetDirectoryName __SOURCE_DIRECTORY__
let (</>) (a: string) (b: string) = Path.Combine(a, b)
let docs = root </> "docs"
let scripts = root </> "scripts"
let work = root </> "obj" </> "site" // fsdocs keeps its cache where it runs
let pages = work </> "pages"
let site = root </> "artifacts" </> "site"

let categories =
    [
        "Start", [ "index"; "engineers"; "researchers"; "installation" ]
        "How to",
        [
            "learner"
            "csharp"
            "web"
            "data"
            "backbones"
            "gpu"
            "choosing"
            "results"
            "report"
        ]
        "The method", [ "method"; "comparison"; "drift"; "metrics" ]
        "Settings and files", [ "command-line"; "configuration"; "formats" ]
        "Development", [ "architecture"; "extending"; "development"; "performance"; "profile" ]
    ]

let tutorials =
    [
        "two-tasks", "Two tasks"
        "retained-space", "The retained space"
        "own-data", "Your own data"
        "own-transform", "Your own transformation"
        "own-method", "Your own method"
        "own-head", "Your own head"
        "load", "What the scripts share"
    ]

/// Runs a program to its end; what it printed.
let run (folder: string) (program: string) (arguments: string list) : string =
    let info =
        ProcessStartInfo(program, arguments, WorkingDirectory = folder, RedirectStandardOutput = true)

    use child = Process.Start info
    let printed = child.StandardOutput.ReadToEnd()
    child.WaitForExit()

    if child.ExitCode <> 0 then
        eprintfn "%s\n%s %s: exit code %d" printed program (String.concat " " arguments) child.ExitCode
        exit 1

    printed

let replace (pattern: string) (change: Match -> string) (text: string) =
    Regex.Replace(text, pattern, change, RegexOptions.Multiline)

let copy (source: string) (target: string) =
    Directory.CreateDirectory(Path.GetDirectoryName target) |> ignore
    File.Copy(source, target, true)

// ---------------------------------------------------------------------------------------------- pages for fsdocs

/// Kept out of the files themselves, where a code host would show it as a table.
let frontMatter (category: string) (categoryIndex: int) (index: int) (title: string) =
    $"---\ntitle: {title}\ncategory: {category}\ncategoryindex: {categoryIndex}\nindex: {index}\n---\n"

/// Marks code without a language as text, which fsdocs would read as F#, losing what F# does not know.
let markText (page: string) =
    let mark struct (fenced, code, blank) (line: string) =
        let indent = line.Length - line.TrimStart().Length
        let fence = line.TrimStart().StartsWith "```"
        let indented = not fenced && indent >= 4 && (code || blank)

        let marked =
            if fence && not fenced && line.EndsWith "```" then
                line + "text"
            elif indented && not code then
                line.Substring(0, indent) + "[lang=text]\n" + line
            else
                line

        marked, struct ((fenced <> fence), (indented || code && line = ""), (line = ""))

    page.Split '\n'
    |> Array.mapFold mark (struct (false, false, true))
    |> fst
    |> String.concat "\n"

let writePage category categoryIndex index (name: string) =
    let text = File.ReadAllText(docs </> name + ".md")
    let title = Regex.Match(text, "^# (.+)$", RegexOptions.Multiline).Groups[1].Value

    File.WriteAllText(
        pages </> name + ".md",
        frontMatter category categoryIndex index title + "\n" + markText text
    )

/// A script as a page: comments at the margin become text, and what the script prints follows.
let writeTutorial index (name: string, title: string) =
    let text (comment: Match) =
        comment.Value
        |> replace "^// " (fun _ -> "")
        // a numbered step is a heading up to its colon or full stop
        |> replace @"^\d+\. ([^:.]+)[:.]\s+(.)" (fun m ->
            $"## {m.Groups[1].Value}\n\n{m.Groups[2].Value.ToUpper()}")
        |> replace "^Run after a build: (.*)$" (fun m -> $"\n`{m.Groups[1].Value}` runs it, after a build.")

    let code =
        File.ReadAllText(scripts </> name + ".fsx")
        |> replace @"(?:^// .*\n)+" (fun comment -> $"(**\n{text comment}*)\n")

    let printed =
        if quick || name = "load" then
            ""
        else
            let lines = (run root "dotnet" [ "fsi"; scripts </> name + ".fsx" ]).TrimEnd()
            $"\n(**\n## What it prints\n\n```text\n{lines}\n```\n*)\n"

    let matter = frontMatter "Tutorials" 2 index title
    let head = $"(**\n{matter}\n# {title}\n*)\n"
    // the copy is deeper than the script
    let code = code.Replace("#r \"../src", "#r \"../../../src")
    File.WriteAllText(pages </> name + ".fsx", head + code + printed)

let writePages () =
    let listed = categories |> List.collect snd |> set

    let present =
        Directory.GetFiles(docs, "*.md")
        |> Seq.map Path.GetFileNameWithoutExtension
        |> set

    if listed <> present then
        eprintfn
            "scripts/site.fsx: its categories and docs/*.md differ in %A"
            ((listed - present) + (present - listed))

        exit 1

    if Directory.Exists work then
        Directory.Delete(work, true)

    Directory.CreateDirectory pages |> ignore

    for i, (category, names) in List.indexed categories do
        // tutorials come second
        names |> List.iteri (writePage category (if i = 0 then 1 else i + 2))

    tutorials |> List.iteri writeTutorial

    for file in Directory.GetFiles(docs, "*.svg") do
        copy file (pages </> Path.GetFileName file)

    for file in Directory.GetFiles(docs </> "examples") do
        copy file (pages </> "examples" </> Path.GetFileName file)

    copy (docs </> "site" </> "_template.html") (pages </> "_template.html")
    copy (docs </> "site" </> "site.css") (pages </> "content" </> "fsdocs-theme.css")
    copy (docs </> "site" </> "search.js") (pages </> "content" </> "search.js")

// ---------------------------------------------------------------------------------------------- what fsdocs made

/// The folders of the library and what they hold, from the table of docs/architecture.md.
let namespaces =
    Regex.Matches(
        File.ReadAllText(docs </> "architecture.md"),
        @"^\| `(\w+)` \| (.+) \|$",
        RegexOptions.Multiline
    )
    |> Seq.map (fun row -> "LoRASub." + row.Groups[1].Value, row.Groups[2].Value.Replace("`", ""))
    |> Map

/// A link out of docs: a tutorial's page, the first tutorial, or a copy of the source file that a browser shows.
let outward (link: string) =
    let file = Path.GetFullPath(docs </> link)
    let name = Path.GetFileNameWithoutExtension file

    if file = scripts then
        "two-tasks.html"
    elif List.exists (fst >> (=) name) tutorials then
        name + ".html"
    else
        let shown = "source" </> Path.GetRelativePath(root, file) + ".txt"
        copy file (site </> shown)
        shown.Replace('\\', '/')

let finish (path: string) =
    let isReference = Path.GetFileName(Path.GetDirectoryName path) = "reference"

    let common (text: string) =
        text.Replace("ROOT/", (if isReference then "../" else ""))
        // its pages are not there
        |> replace
            @"<a href=""https://learn\.microsoft\.com/dotnet/api/torchsharp[^""]*""[^>]*>(.*?)</a>"
            _.Groups[1].Value

    let reference =
        replace @"title=""(LoRASub\.\w+)""(?s:.*?)<td></td>" (fun row ->
            match namespaces.TryFind row.Groups[1].Value with
            | Some holds -> row.Value.Replace("<td></td>", $"<td>{holds}</td>")
            | None -> row.Value)
        >> replace "`([^`<>]+)`" (fun code -> $"<code>{code.Groups[1].Value}</code>")

    let page (text: string) =
        text.Replace("../../../src", "../src")
        |> replace @"href=""([\w-]+)\.md(#[^""]*)?""" (fun link ->
            $"href=\"{link.Groups[1].Value}.html{link.Groups[2].Value}\"")
        |> replace @"href=""(\.\./[^""]*)""" (fun link -> $"href=\"{outward link.Groups[1].Value}\"")
        // anchors as a code host writes them
        |> replace @"(name|href)=""(#?)([^"".:/]+)""" (fun a ->
            $"{a.Groups[1].Value}=\"{a.Groups[2].Value}{a.Groups[3].Value.ToLowerInvariant()}\"")

    File.WriteAllText(path, File.ReadAllText path |> common |> (if isReference then reference else page))

/// What of the site a reader cannot follow without a network, or at all.
let problems () =
    let files = Directory.GetFiles(site, "*", SearchOption.AllDirectories)
    let texts = files |> Seq.map (fun file -> file, File.ReadAllText file) |> Map
    let name (file: string) = Path.GetRelativePath(site, file)

    let anchors =
        texts
        |> Map.map (fun _ text ->
            Regex.Matches(text, @"\b(?:id|name)=""([^""]+)""")
            |> Seq.map _.Groups[1].Value
            |> set)

    [
        for KeyValue(file, text) in texts do
            match Path.GetExtension file with
            | ".html" ->
                for m in Regex.Matches(text, @"<(\w+)[^>]*?\b(href|src)=""([^""]*)""") do
                    let tag, link = m.Groups[1].Value, Net.WebUtility.HtmlDecode m.Groups[3].Value

                    if Regex.IsMatch(link, "^(https?:)?//") then
                        if tag <> "a" then // a reader may follow a link elsewhere, a page may not
                            $"{name file}: {tag} loads {link}"
                    elif not (Regex.IsMatch(link, "^(data|mailto):")) then
                        let parts = link.Split('#', 2)

                        let target =
                            if parts[0] = "" then
                                file
                            else
                                Path.GetFullPath(
                                    Path.GetDirectoryName file </> Uri.UnescapeDataString parts[0]
                                )

                        match anchors.TryFind target with
                        | None -> $"{name file}: no file for {link}"
                        | Some known when
                            parts.Length = 2 && not (known.Contains(Uri.UnescapeDataString parts[1]))
                            ->
                            $"{name file}: no anchor for {link}"
                        | Some _ -> ()
            | ".css"
            | ".js" ->
                for m in
                    Regex.Matches(text, @"(?:import|from|url\(|fetch\()\s*[""']?((?:https?:)?//[^""')\s]+)") do
                    $"{name file}: loads {m.Groups[1].Value}"
            | _ -> ()
    ]

writePages ()

let options =
    "fsdocs build --clean --strict --input pages --properties Configuration=Release --parameters root ROOT/"

let project = root </> "src" </> "LoRASub.FSharp" </> "LoRASub.FSharp.fsproj"

run work "dotnet" [ yield! options.Split ' '; "--projects"; project; "--output"; site ]
|> ignore

// a page may load a script from a disk, but not JSON
File.WriteAllText(
    site </> "content" </> "index.js",
    "window.siteIndex = " + File.ReadAllText(site </> "index.json")
)

// what its own template would load from the network, and copies of the pages for other readers
let unwanted =
    "fsdocs-search.js *-toggle.js fsdocs-*-set-*.js *.md llms*.txt index.json NuGet.config"

for pattern in unwanted.Split ' ' do
    for file in Directory.GetFiles(site, pattern, SearchOption.AllDirectories) do
        File.Delete file

Directory.Delete(site </> "content" </> "img", true)

for file in Directory.GetFiles(site, "*.html", SearchOption.AllDirectories) do
    finish file

match problems () with
| [] -> printfn "The site is artifacts/site; its first page is artifacts/site/index.html."
| found ->
    List.iter (eprintfn "%s") found
    eprintfn "%d links that do not work without a network, or at all" found.Length
    exit 1
