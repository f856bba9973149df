/// The display of a run: a live block on a terminal, plain lines elsewhere, then the results.
module LoRASub.Cli.Display

open System
open System.IO
open LoRASub.Core
open LoRASub.Native
open LoRASub.Data
open LoRASub.Methods
open LoRASub.Learn
open LoRASub.Measure
open LoRASub.Settings
open LoRASub.Run
open Spectre.Console
// ---------------------------------------------------------------------------------------------- texts

let private percent = Layout.percent 2
let private number = Layout.fixed'

/// 0:07, 12:34, 1:02:03.
let duration (seconds: float) =
    let t = TimeSpan.FromSeconds(Math.Round seconds)

    if t.TotalHours >= 1.0 then
        $"{int t.TotalHours}:{t.Minutes:D2}:{t.Seconds:D2}"
    else
        $"{t.Minutes}:{t.Seconds:D2}"

/// 13 s below a minute, else as `duration`.
let private short (seconds: float) =
    if Math.Round seconds < 60.0 then
        $"{Math.Round seconds} s"
    else
        duration seconds

/// The visible text, cut to a width with dots at its end.
let fit (width: int) (text: string) = Text.cut "..." width text

let private classNames (dataset: Dataset) (task: LearningTask) =
    task.Classes |> Array.map (fun c -> dataset.ClassNames[c]) |> String.concat ", "

let private ranks (retained: Retained[]) =
    retained |> Array.map (fun r -> string r.Rank) |> String.concat " "

// ---------------------------------------------------------------------------------------------- time left

/// Steps of each phase, per task.
type Workload = Map<Phase, int>[]

[<RequireQualifiedAccess>]
module Workload =

    /// The steps of a plan, as `Experiment.run` counts them.
    let ofPlan (learner: Learner) (plan: Plan) : Workload =
        let settings, stream = plan.Settings, plan.Stream

        let batches images =
            (images + settings.Batch - 1) / settings.Batch

        let tests task =
            let tested = (Plan.testedAfter task plan).Stream

            stream.Tasks[.. task.Index]
            |> Array.sumBy (TaskStream.testIndices tested >> _.Length >> batches)

        Plan.tasks plan
        |> Array.map (fun task ->
            let train = batches (TaskStream.trainIndices stream task).Length

            Map.ofList
                [
                    Phase.Observe, (if learner.Method.Observes task then train else 0)
                    Phase.Train,
                    (if learner.Method.Trains task then
                         train * settings.EpochsOf task
                     else
                         0)
                    Phase.Prototypes, train
                    Phase.Predict, tests task
                ])

/// The state of a display: the progress so far.
type View =
    {
        /// Since the run began.
        Now: TimeSpan
        Task: LearningTask option
        /// The latest step.
        Step: Step option
        /// Latest mean loss and accuracy of the task's training.
        Loss: float option
        Accuracy: float option
        Retained: Retained[]
        /// Seconds spent in each phase.
        Spent: Map<Phase, float>
    }

[<RequireQualifiedAccess>]
module View =

    let initial =
        {
            Now = TimeSpan.Zero
            Task = None
            Step = None
            Loss = None
            Accuracy = None
            Retained = [||]
            Spent = Map.empty
        }

    /// The view after one more progress report at a time since the run began. The time since the previous report
    /// counts for the phase that used it: training reports a step after it, the other phases before it.
    let update (now: TimeSpan) (progress: RunEvent) (view: View) : View =
        let spend phase =
            let before = Map.tryFind phase view.Spent |> Option.defaultValue 0.0
            Map.add phase (before + (now - view.Now).TotalSeconds) view.Spent

        let previous =
            match view.Step with
            | Some step -> spend step.Phase
            | None -> view.Spent

        let view =
            match progress with
            | TaskBegins(task, _) ->
                { view with
                    Task = Some task
                    Step = None
                    Loss = None
                    Accuracy = None
                    Retained = [||]
                }
            | Learning(Steps step) ->
                { view with
                    Step = Some step
                    Loss = Option.orElse view.Loss step.Loss
                    Accuracy = Option.orElse view.Accuracy step.Accuracy
                    Spent =
                        if step.Phase = Phase.Train then
                            spend Phase.Train
                        else
                            previous
                }
            | Learning(Retains(_, retained)) ->
                { view with
                    Retained = retained
                    Spent = previous
                }
            | TaskEnds _ ->
                { view with
                    Step = None
                    Spent = previous
                }
            | Learning(EpochEnds _)
            | Notice _ -> view

        { view with Now = now }

    /// Steps of a phase that are done, and those still to do.
    let private steps (workload: Workload) (view: View) (phase: Phase) =
        let order p = List.findIndex ((=) p) Phase.all
        let total = workload |> Array.sumBy (Map.find phase)

        let finished =
            match view.Task with
            | None -> 0
            | Some task ->
                let earlier = workload |> Array.truncate task.Index |> Array.sumBy (Map.find phase)
                let mine = workload[task.Index][phase]

                match view.Step with
                | Some step when step.Phase = phase -> earlier + min step.Done mine
                | Some step when order step.Phase > order phase -> earlier + mine
                | _ -> earlier

        struct (finished, total - finished)

    /// A training step runs forward and backward, the others forward only.
    let private weight phase =
        if phase = Phase.Train then 3.0 else 1.0

    /// Seconds left: the remaining steps of each phase times their mean cost so far. A phase without a finished step
    /// is estimated from the others by weight. None before the first step.
    let secondsLeft (workload: Workload) (view: View) : float option =
        let phases =
            [ Phase.Observe; Phase.Train; Phase.Prototypes; Phase.Predict ]
            |> List.map (fun phase ->
                let struct (finished, left) = steps workload view phase
                phase, finished, left, Map.tryFind phase view.Spent |> Option.defaultValue 0.0)

        let measured =
            phases
            |> List.filter (fun (_, finished, _, spent) -> finished > 0 && spent > 0.0)

        if measured.IsEmpty then
            None
        else
            let seconds = measured |> List.sumBy (fun (_, _, _, spent) -> spent)

            let weights =
                measured |> List.sumBy (fun (phase, n, _, _) -> weight phase * float n)

            phases
            |> List.sumBy (fun (phase, finished, left, spent) ->
                let cost =
                    if finished > 0 && spent > 0.0 then
                        spent / float finished
                    else
                        weight phase * seconds / weights

                cost * float left)
            |> Some

// ---------------------------------------------------------------------------------------------- the run

/// The header of a run: data, tasks, method, backbone and machine.
let header (plan: Plan) (threads: int) : string list =
    let settings, stream, vit = plan.Settings, plan.Stream, plan.Backbone
    let data = stream.Dataset

    let sizes = stream.Tasks |> Array.map _.Classes.Length

    let stop =
        match settings.StopAfter with
        | Some n when n < stream.Tasks.Length -> $", stop after {n}"
        | _ -> ""

    let setting name =
        Settings.toPairs settings |> List.find (fun (n, _) -> n = name) |> snd

    let info = settings.ChosenMethod.Info
    let precision = setting "precision"

    let epochs, method =
        if info.Trains then
            $", epochs {settings.Epochs}",
            $"""{info.Name}, {setting "variant"}, rank {settings.Method.Rank}"""
        else
            "", info.Name

    let method =
        if settings.IsUndecided then
            $"auto: {method}, or frozen"
        else
            method

    [
        $"data      {data.Name}: {Dataset.classes data} classes, {data.Train.Labels.Length} training and {data.Test.Labels.Length} test images"
        $"tasks     {TaskStream.describeSizes sizes}{stop}{epochs}, batch {settings.Batch}"
        $"method    {method}, seed {settings.Seed}"
        $"""backbone  ViT, {Text.counted vit.Blocks.Length "block" "blocks"} of width {vit.Width}, {Text.counted vit.Heads "head" "heads"}, {vit.ImageSize} px in patches of {vit.PatchSize}"""
        $"""runs on   {settings.Device}, {Text.counted threads "thread" "threads"}, {precision}"""
        ""
    ]

let private taskOf (tasks: int) (task: LearningTask) = $"task {task.Index + 1}/{tasks}"

let private taskEnd (tasks: int) (task: LearningTask) (row: Score[]) (seconds: float) =
    let seen = row |> Array.reduce (+) |> Metrics.accuracy |> percent
    let news = Array.last row |> Metrics.accuracy |> percent
    let classes = task.FirstClass + task.Classes.Length

    $"{taskOf tasks task}: accuracy {seen}%% on {classes} classes so far (new classes {news}%%), {short seconds}"

/// Shows the progress of `work` while it runs.
type Show = (((RunEvent -> unit) -> Outcome) -> Outcome)

/// Plain lines, for files and pipes: at most one for each phase and epoch of a task, without control characters.
let plain (out: TextWriter) (workload: Workload) (plan: Plan) : Show =
    fun work ->
        let clock = Diagnostics.Stopwatch.StartNew()
        let tasks = workload.Length
        let mutable began = TimeSpan.Zero
        let mutable phase = None

        let say (text: string) =
            out.WriteLine(fit Layout.Columns text)
            out.Flush()

        work (fun progress ->
            match progress with
            | TaskBegins(task, _) ->
                began <- clock.Elapsed
                phase <- None
                say $"{taskOf tasks task}: {classNames plan.Stream.Dataset task}"
            | Learning(Steps { Phase = Phase.Train }) -> phase <- Some Phase.Train
            | Learning(EpochEnds epoch) ->
                let task = plan.Stream.Tasks[epoch.Task]
                let epochs = plan.Settings.EpochsOf task

                say
                    $"{taskOf tasks task}: epoch {epoch.Epoch + 1}/{epochs}, loss {number 4 epoch.Loss}, accuracy {percent epoch.Accuracy}%%"
            | Learning(Steps step) when phase <> Some step.Phase ->
                phase <- Some step.Phase
                let batches = Text.counted step.Steps "batch" "batches"
                say $"{taskOf tasks step.Task}: {Phase.name step.Phase}, {batches}"
            | Learning(Steps _) -> ()
            | Learning(Retains(task, retained)) ->
                say $"{taskOf tasks task}: retained ranks of {plan.Backbone.Width}: {ranks retained}"
            | TaskEnds(task, row, _, _) -> say (taskEnd tasks task row (clock.Elapsed - began).TotalSeconds)
            | Notice text -> say $"note: {text}")

let private bar (width: int) (share: float) =
    let full = int (Math.Round(float width * share))
    let rest = width - full
    $"[green]{String('━', full)}[/][grey]{String('─', rest)}[/]"

/// The live block: the current task and phase, the latest loss and the time left.
let private block (width: int) (workload: Workload) (plan: Plan) (view: View) : Rendering.IRenderable =
    let line (text: string) = Markup text :> Rendering.IRenderable
    let safe (text: string) = Markup.Escape(fit (width - 12) text)

    let elapsed = view.Now.TotalSeconds
    let left = View.secondsLeft workload view

    let share =
        left
        |> Option.map (fun s -> elapsed / max 1e-9 (elapsed + s))
        |> Option.defaultValue 0.0

    let time =
        match left with
        | Some seconds -> $"{duration elapsed} elapsed, {duration seconds} left"
        | None -> $"{duration elapsed} elapsed"

    Rows(
        [
            line " "

            match view.Task with
            | Some task ->
                line $"[bold]{taskOf workload.Length task}[/]    {safe (classNames plan.Stream.Dataset task)}"
            | None -> line " "

            match view.Step with
            | Some step ->
                let epoch =
                    if step.Phase = Phase.Train then
                        $", epoch {step.Epoch + 1}/{step.Epochs}"
                    else
                        ""

                line $"{Phase.name step.Phase, -11} step {step.Done}/{step.Steps}{epoch}"
            | None -> line "starting"

            match view.Loss, view.Accuracy with
            | Some loss, Some accuracy ->
                line $"""{"training", -11} loss {number 4 loss}, accuracy {percent accuracy}%%"""
            | _ -> line " "

            if view.Retained.Length > 0 then
                line $"""{"retained", -11} {safe (ranks view.Retained)} [grey]of {plan.Backbone.Width}[/]"""
            else
                line " "

            line $"{bar (width - 40) share} {int (100.0 * share), 3}%%  [grey]{time}[/]"
        ]
    )

/// How often the live block is drawn at most.
let private redraw = TimeSpan.FromSeconds 0.2

/// For terminals: a live block below the list of finished tasks.
let live (console: IAnsiConsole) (workload: Workload) (plan: Plan) : Show =
    fun work ->
        let clock = Diagnostics.Stopwatch.StartNew()
        let tasks = workload.Length
        let width = max 50 (min Layout.Columns console.Profile.Width) - 1
        let mutable view = View.initial
        let mutable began = TimeSpan.Zero
        let mutable drawn = TimeSpan.MinValue

        let display = console.Live(block width workload plan view)
        display.AutoClear <- true

        display.Start(fun context ->
            let draw () =
                drawn <- clock.Elapsed
                context.UpdateTarget(block width workload plan view)

            let log (text: string) =
                console.MarkupLine(Markup.Escape(fit width text))

            work (fun progress ->
                let now = clock.Elapsed
                view <- View.update now progress view

                match progress with
                | TaskBegins _ -> began <- now
                | TaskEnds(task, row, _, _) -> log (taskEnd tasks task row (now - began).TotalSeconds)
                | Notice text -> log $"note: {text}"
                | Learning _ -> ()

                if drawn = TimeSpan.MinValue || now - drawn >= redraw then
                    draw ()))

// ---------------------------------------------------------------------------------------------- results

/// The largest number of tasks whose columns fit.
[<Literal>]
let private MatrixTasks = 10

/// The accuracy matrix as lines of text; of more than ten tasks, ten spread over the run.
let matrixLines (matrix: AccuracyMatrix) : string list =
    let n = matrix.Length

    let shown =
        if n <= MatrixTasks then
            [ 0 .. n - 1 ]
        else
            [ for i in 0 .. MatrixTasks - 1 -> i * (n - 1) / (MatrixTasks - 1) ]

    let cell (text: string) = text.PadLeft 6

    let cells texts =
        texts |> List.map cell |> String.concat ""

    let short x = number 1 (100.0 * x)

    [
        "accuracy in percent after each task (row) on each task (column)"
        cells ("task" :: (shown |> List.map (fun j -> string (j + 1))) @ [ "seen" ])

        for t in shown do
            let tasks =
                shown
                |> List.map (fun j ->
                    if j <= t then
                        short (Metrics.accuracy (matrix[t][j]))
                    else
                        "")

            let seen = matrix[t] |> Array.reduce (+) |> Metrics.accuracy |> short
            cells (string (t + 1) :: tasks @ [ seen ])

        if n > MatrixTasks then
            $"({MatrixTasks} of the {n} tasks; summary.json has all)"
    ]

// The movement of the class means at the output, after the last task.
let private driftLine (drift: Drift.State) =
    match Drift.summary drift with
    | None -> []
    | Some summary ->
        let moved = summary.OutputSinceLearned

        // a class of one test image has no spread
        let far =
            if Double.IsFinite moved.Relative then
                $"{number 3 moved.Relative} class spreads"
            else
                $"{number 3 moved.Euclidean} in feature space"

        [
            $"drift              old class means moved {far} ({summary.Classes} classes)"
        ]

// Every head of a run with several.
let private headLines (outcome: Outcome) : string list =
    let line (name: string) last average forgetting bytes recomputed =
        $"{fit 36 name, -36} {last, 6} {average, 8} {forgetting, 10} {bytes, 10} {recomputed}".TrimEnd()

    match Results.heads outcome with
    | [| only |] when only.Recomputed.IsNone -> []
    | heads ->
        let optional value =
            value |> Option.map (number 1) |> Option.defaultValue ""

        [
            ""
            line
                "head"
                "last"
                "average"
                "forgetting"
                "bytes"
                (if heads[0].Recomputed.IsSome then "recomputed" else "")

            for head in heads do
                line
                    head.Head
                    (number 1 head.Last)
                    (number 1 head.Average)
                    (optional head.Forgetting)
                    // a method's own classifier is part of the method
                    (if head.Bytes = 0L then "" else Bytes.text head.Bytes)
                    (optional head.Recomputed)
        ]

/// The statistics over several seeds.
let statistics (statistics: SeedStatistics) : string list =
    [
        ""
        let seeds = statistics.Seeds |> Array.map string |> String.concat ", "
        $"seeds {seeds}: mean ± half of the 95%% interval, in percent"
        yield! Statistics.lines statistics
    ]

/// The results of a finished run as lines of text.
let results (plan: Plan) (outcome: Outcome) : string list =
    let struct (measures, missing) = Results.measures plan outcome

    let value name = Map.tryFind name measures

    let transfer name =
        match value name, Map.tryFind name (Map.ofList missing) |> Option.flatten with
        | Some x, _ -> Some $"{percent x}%%"
        | None, Some reason when plan.References.Length > 0 -> Some reason
        | None, _ -> None

    let same a b =
        Option.map percent a = Option.map percent b

    let differs =
        not (
            same (value "last") (value "lastByTask")
            && same (value "average") (value "averageByTask")
        )

    let orNeeds name =
        match value name with
        | Some x -> $"{percent x}%%"
        | None -> "needs two tasks, tested on the same images"

    let seconds phases =
        phases
        |> List.map (fun phase -> $"{Phase.name phase} {number 1 outcome.PhaseSeconds[phase]}")
        |> String.concat ", "

    [
        ""
        yield! matrixLines outcome.Matrix
        ""
        $"""last accuracy      {percent measures["last"]}%%"""
        $"""average accuracy   {percent measures["average"]}%%"""

        if differs then
            $"""  by task          last {percent measures["lastByTask"]}%%, average {percent measures["averageByTask"]}%%"""

        $"""forgetting         {orNeeds "forgetting"}"""
        $"""backward transfer  {orNeeds "backwardTransfer"}"""
        yield!
            transfer "forwardTransfer"
            |> Option.map (fun text -> $"forward transfer   {text}")
            |> Option.toList

        yield!
            transfer "intransigence"
            |> Option.map (fun text -> $"intransigence      {text}")
            |> Option.toList

        yield! headLines outcome
        yield! outcome.Drift |> Option.map driftLine |> Option.defaultValue []
        $"seconds            {seconds [ Phase.Observe; Phase.Project; Phase.Train ]}"
        $"                   {seconds [ Phase.Prototypes; Phase.Predict ]}"
        $"peak memory        {Bytes.text (MemoryUse.peakBytes ())}"
        match MemoryUse.deviceBytes plan.Backbone.Device with
        | Some bytes -> $"device memory      {Bytes.text bytes}"
        | None -> ()
    ]

/// Whether a task's score equals the saved one.
let isReproduced (row: Recheck) = row.Now = row.Saved

/// The scores of a saved learner now and as saved.
let evaluation (rows: Recheck[]) : string list =
    let cells (texts: string list) =
        texts |> List.map _.PadLeft(10) |> String.concat ""

    [
        cells [ "task"; "now %"; "saved %"; "equal" ]

        for row in rows do
            cells
                [
                    string (row.Task.Index + 1)
                    percent (Metrics.accuracy row.Now)
                    percent (Metrics.accuracy row.Saved)
                    (if isReproduced row then "yes" else "no")
                ]

        let seen = rows |> Array.map _.Now |> Array.reduce (+)
        cells [ "all"; percent (Metrics.accuracy seen) ]
    ]

/// Shows the number of batches of `work` on a terminal while it runs.
let counting (console: IAnsiConsole) (work: (unit -> unit) -> 'T) : 'T =
    console
        .Status()
        .Start(
            "reading the data",
            fun context ->
                let mutable batches = 0

                work (fun () ->
                    batches <- batches + 1
                    context.Status <- $"test batch {batches}")
        )

/// Does work that says where it is, which is shown while it lasts on a terminal and nowhere else.
let working (terminal: IAnsiConsole option) (work: (string -> unit) -> 'T) : 'T =
    match terminal with
    | Some console ->
        console
            .Status()
            .Start("starting", fun context -> work (fun text -> context.Status <- Markup.Escape text))
    | None -> work ignore

/// Says how far the download of a named file is, a few times a second.
let received (show: string -> unit) : string -> int64 -> int64 option -> unit =
    let clock = Diagnostics.Stopwatch.StartNew()
    // the file, its bytes when its first arrived, and when; when it was last said
    let mutable start = struct ("", 0L, TimeSpan.Zero)
    let mutable said = TimeSpan.Zero

    fun name bytes total ->
        let now = clock.Elapsed
        let struct (file, before, since) = start

        if file <> name then
            start <- struct (name, bytes, now)
        elif now - said > redraw then
            said <- now
            let seconds = (now - since).TotalSeconds
            let speed = float (bytes - before) / seconds
            let all = total |> Option.map (fun n -> $" of {Bytes.text n}") |> Option.toList

            let rest =
                match total with
                | _ when seconds < 1.0 -> [] // the first bytes were waiting
                | None -> [ $", {Bytes.text (int64 speed)}/s" ]
                | Some total ->
                    let left = duration (float (total - bytes) / max speed 1.0)
                    [ $", {Bytes.text (int64 speed)}/s, {left} left" ]

            show (String.concat "" ($"{name}: {Bytes.text bytes}" :: all @ rest))
