namespace LoRASub.Report

open LoRASub.Data
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings

/// Sections of a report.
[<RequireQualifiedAccess>]
module internal Section =
    let accuracy = "Accuracy"
    let drift = "Drift"
    let subspace = "Retained subspace"
    let classes = "Classes"
    let training = "Training and time"

/// What figures are put together from: axes, words and rules for several groups.
module internal FigureParts =

    let percent (value: float) = Format.fixedPoint 1 value + " %"
    let points (value: float) = Format.fixedPoint 1 value
    let short (value: float) = Format.significant 3 value
    let inPercent = Array.map ((*) 100.0)
    let numbered n = [| for i in 1..n -> string i |]

    /// A mean with its interval, for a tooltip.
    let described (show: float -> string) (interval: Interval) =
        if interval.HasEnds then
            $"{show interval.Mean} (95%% interval {show interval.Low} to {show interval.High}, {interval.N} seeds)"
        else
            show interval.Mean

    let afterTask show t interval =
        $"after task {t + 1}: {described show interval}"

    /// A note for captions.
    let private ifSeveralSeeds (note: string) (groups: RunGroup[]) =
        if groups |> Array.exists (fun group -> (RunGroup.counted group).Length > 1) then
            note
        else
            ""

    let bands =
        ifSeveralSeeds " Lines are means over seeds, bands their 95% intervals (Student's t)."

    let whiskers = ifSeveralSeeds " Whiskers: 95% intervals over seeds (Student's t)."

    /// A figure of marks, without borders.
    let figure section id title caption x y (marks: Marks) : Figure =
        {
            Id = id
            Section = section
            Title = title
            Caption = caption
            X = x
            Y = y
            Borders = [||]
            Marks = marks
        }

    /// A figure of each group that has one. With several groups, its title names the group and its identifier has the
    /// group's number.
    let forEach (groups: RunGroup[]) (draw: RunGroup -> Figure option) : Figure[] =
        let named number (group: RunGroup) (figure: Figure) =
            if groups.Length = 1 then
                figure
            else
                { figure with
                    Id = $"{figure.Id}-{number + 1}"
                    Title = $"{figure.Title}: {group.Name}"
                }

        groups
        |> Array.mapi (fun number group -> draw group |> Option.map (named number group))
        |> Array.choose id

    /// What the first run that has it holds, and the words that name this run's seed in a caption.
    let first (choose: RunData -> 'T option) (group: RunGroup) : (string * 'T) option =
        let seed (run: RunData) =
            if group.Runs.Length = 1 then "" else $" Seed {run.Seed}."

        group.Runs
        |> Array.tryPick (fun run -> choose run |> Option.map (fun found -> seed run, found))

    /// A figure of the first run of each group that has what it shows.
    let ofFirstRun (choose: RunData -> 'T option) (draw: 'T -> Figure) (groups: RunGroup[]) : Figure[] =
        forEach groups (fun group ->
            first choose group
            |> Option.map (fun (seed, found) ->
                let figure = draw found

                { figure with
                    Caption = figure.Caption + seed
                }))

    let nonEmpty (items: 'T[]) =
        if items.Length = 0 then None else Some items

    let axis title =
        {
            Title = title
            Log = false
            Whole = false
            FromZero = false
            Range = None
        }

    let whole title = { axis title with Whole = true }
    let fromZero title = { axis title with FromZero = true }
    let within range title = { axis title with Range = range }
