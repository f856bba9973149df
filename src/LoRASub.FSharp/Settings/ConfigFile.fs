namespace LoRASub.Settings

open LoRASub.Core
open LoRASub.Data
open LoRASub.Heads
open LoRASub.Settings.ConfigSection

/// Configuration files: this program's own, and the two published codes' as they are.
[<RequireQualifiedAccess; CompilationRepresentation(CompilationRepresentationFlags.ModuleSuffix)>]
module ConfigFile =

    /// Seeds on the command line: `1,2,3`. Rejects what is not a whole number, and a repeated seed.
    let internal seeds (subject: string) (text: string) : int64[] =
        text.Split ',' |> parseSeeds subject text "write 1,2,3"

    // ------------------------------------------------------------------------------------------ this program's own

    let private ownKeys =
        List.map (fun (s: Setting) -> s.Name) Settings.all @ [ "seeds" ]

    /// Whether a setting's values may also be written as a list.
    let private takesList (name: string) =
        match (Settings.find name).Kind with
        | SettingKind.Pair _
        | SettingKind.Folders
        | SettingKind.Names -> true
        | _ -> false

    let private own (root: Section) : ConfigFile =
        let place (node: ConfigNode) = $"{root.File}, line {node.Line}"

        root.Entries
        |> Array.groupBy fst
        |> Array.iter (fun (name, all) ->
            let _, node = Array.last all

            if not (List.contains name ownKeys) then
                Errors.reject
                    (place node)
                    "must be a setting of docs/configuration.md"
                    $"'{ConfigTree.shortened name}'"
                    (Errors.didYouMean ownKeys (ConfigTree.shortened name))

            if all.Length > 1 then
                let lines = all |> Array.map (fun (_, node) -> string node.Line) |> listed

                Errors.reject
                    (place node)
                    $"{name} must be given once"
                    $"lines {ConfigTree.shortened lines}"
                    "remove one of them")

        let found (name, node: ConfigNode) =
            {
                Value = node.Value
                Source = $"{place node} ({name})"
            }

        let seeds, rest = root.Entries |> Array.partition (fun (name, _) -> name = "seeds")

        if seeds.Length = 1 && Array.exists (fun (name, _) -> name = "seed") rest then
            (found seeds[0]).Refuse "cannot be combined with seed" "remove one of them"

        let setting (name, node: ConfigNode) =
            let found = found (name, node)

            let value =
                match node.Value with
                | Items _ when takesList name -> found.Items |> Array.map _.Text |> String.concat ","
                | Nothing -> found.Refuse "must have a value" "remove the key for the default"
                | Items _ when name = "seed" -> found.Refuse "must be one number" "write seeds for several"
                | _ -> found.Text

            let name =
                match name, System.Int32.TryParse value with
                // attention heads, in settings saved before heads had the name
                | "heads", (true, _) -> "attention-heads"
                | _ -> name

            says name value (place node)

        {
            Path = root.File
            Format = ConfigFormat.Own
            Settings = rest |> Array.map setting |> List.ofArray
            Seeds =
                seeds
                |> Array.tryHead
                |> Option.map (found >> seedsOf)
                |> Option.map (fun (s, _) -> s, place (snd seeds[0]))
            Notes = []
            Expected =
                { nothingExpected with
                    File = root.File
                }
        }

    // ------------------------------------------------------------------------------------------ a file

    let private marks =
        [
            ConfigFormat.LibContinual,
            [ "classifier"; "init_cls_num"; "inc_cls_num"; "total_cls_num"; "task_num" ]
            ConfigFormat.Official,
            [ "init_cls"; "increment"; "total_sessions"; "init_lr"; "lrate"; "model_name" ]
        ]

    /// The format with most of its own keys, this program's where no published one has any.
    let private formatOf (root: Section) : ConfigFormat =
        let names = root.Names

        let hits keys =
            names |> List.filter (fun n -> List.contains n keys) |> List.length

        match marks |> List.maxBy (snd >> hits) with
        | format, keys when hits keys > 0 -> format
        | _ when hits ownKeys > 0 -> ConfigFormat.Own
        | _ ->
            let known = ownKeys @ List.collect snd marks
            let name = ConfigTree.shortened names.Head

            Errors.reject
                root.File
                "must hold settings of docs/configuration.md, or a configuration of LibContinual or of the method's authors"
                $"'{name}'"
                (Errors.didYouMean known name)

    /// Rejects a value that no run can have, and names its place.
    let private checkSetting (s: SettingSource) =
        if s.Value.Length > 4096 then
            Errors.reject s.Source "must have at most 4096 characters" $"{s.Value.Length}" ""

        if s.Name = "data" && not (List.contains s.Value Datasets.names) then
            refuseData s.Source $"'{ConfigTree.shortened s.Value}'"

        try
            Preset.quick Variant.Official |> Settings.set s.Name s.Value |> ignore
        with :? InputException as e ->
            let advised =
                e.Message.IndexOf(';', e.Message.IndexOf("; found", System.StringComparison.Ordinal) + 1) > 0

            let fix = if advised then "" else "; remove it for the default"
            raise (InputException($"{s.Source}: {e.Message}{fix}", e))

    /// <summary>The configuration in the bytes of a file: settings of this program, or a published configuration as
    /// it is.</summary>
    /// <param name="path">The name that errors and sources use.</param>
    /// <param name="bytes">Text in UTF-8.</param>
    /// <returns>The settings with their lines.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The text is neither YAML nor JSON, a setting is unknown or
    /// nested, or a value is of the wrong kind or out of range; the message names the line.</exception>
    let parse (path: string) (bytes: byte[]) : ConfigFile =
        match (ConfigTree.parse path bytes).Value with
        | Entries entries when entries.Length > 0 ->
            let root =
                {
                    File = path
                    Prefix = ""
                    Entries = entries
                }

            let file =
                match formatOf root with
                | ConfigFormat.Own -> own root
                | ConfigFormat.LibContinual -> LibContinual.read root
                | ConfigFormat.Official -> Official.read root

            List.iter checkSetting file.Settings
            file
        | _ -> Errors.reject path "must hold a mapping of settings" "none" "see docs/configuration.md"

    /// <summary>Reads a configuration file.</summary>
    /// <param name="path">A file in YAML or JSON of at most 1 MiB.</param>
    /// <returns>The settings with their lines.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">The path is not a file of at most 1 MiB. The text is neither
    /// YAML nor JSON, a setting is unknown or nested, or a value is of the wrong kind or out of range; the message
    /// names the line.</exception>
    let read (path: string) : ConfigFile = parse path (ConfigTree.bytes path)
