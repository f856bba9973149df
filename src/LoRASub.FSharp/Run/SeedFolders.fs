namespace LoRASub.Run

open System.IO
open System.Text.Json.Serialization
open LoRASub.Files
open LoRASub.Measure
open LoRASub.Settings

/// seeds.json.
type SeedsFile =
    {
        Seeds: int64[]
        /// Of processes that run at once, if the seeds are shared among devices.
        [<JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)>]
        Devices: string[] option
    }

/// A folder of runs that differ only in their seed: `seeds.json` and, in `seed-N`, a run's folder for each, then
/// `statistics.json`, whose presence means that all are finished.
[<RequireQualifiedAccess>]
module internal SeedFolders =

    /// The file of statistics over all seeds.
    let statisticsPath (folder: string) = Path.Combine(folder, "statistics.json")

    /// The folder of one seed's run.
    let folderOf (folder: string) (seed: int64) = Path.Combine(folder, $"seed-{seed}")

    /// Whether a folder holds runs of several seeds.
    let holdsSeeds (folder: string) = File.Exists(RunFiles.seeds folder)

    /// Whether the runs of all seeds are finished.
    let isFinished (folder: string) = File.Exists(statisticsPath folder)

    let private load (folder: string) : SeedsFile =
        Json.load<SeedsFile> "the seeds of a folder of runs" (RunFiles.seeds folder)

    /// The seeds, in the order in which they run.
    let seeds (folder: string) : int64[] = (load folder).Seeds

    /// The devices that share the seeds; none where they run one after the other in one process.
    let devices (folder: string) : string[] = defaultArg (load folder).Devices [||]

    /// Begins such a folder: writes seeds and devices, and the settings, whose own seed does not count.
    let start (folder: string) (seeds: int64[]) (devices: string[]) (settings: RunSettings) =
        Json.save
            (RunFiles.seeds folder)
            {
                Seeds = seeds
                Devices = if devices.Length = 0 then None else Some devices
            }

        Json.write (RunFiles.settings folder) (Settings.toJson settings)

    /// The runs of the seeds that a folder names; other folders beside them do not count.
    let runs (folder: string) : string[] =
        if holdsSeeds folder then
            seeds folder |> Array.map (folderOf folder) |> Array.filter RunFolder.holdsRun
        else
            [||]

    /// Removes the files of a process that was killed before it saved the settings.
    let forget (folder: string) =
        if not (RunFolder.holdsRun folder) then
            File.Delete(RunFiles.seeds folder)
            File.Delete(RunFiles.sources folder)

    /// The files that `clear` removes.
    let files (folder: string) : string[] =
        Array.append [| folder |] (runs folder) |> Array.collect RunFiles.present

    /// Removes what runs have left in a folder, of one seed or of several: to be called while the folder is held.
    let clear (folder: string) =
        if holdsSeeds folder then
            let runs = runs folder

            // all of them first: no run is removed while another is in use
            let locks = runs |> Array.map RunFolder.hold

            try
                // first, so that the folder never looks finished when some runs are gone
                File.Delete(statisticsPath folder)

                for one in runs do
                    RunFolder.clear one
                    File.Delete(RunFiles.lock' one)

                    if Array.isEmpty (Directory.GetFileSystemEntries one) then
                        Directory.Delete one
            finally
                for hold in locks do
                    hold.Dispose()

        RunFolder.clear folder

    /// The measures of a finished run of a seed.
    let result (folder: string) (seed: int64) : SeedResult =
        let struct (summary, stored) =
            SummaryFile.load (RunFiles.summary (folderOf folder seed))

        let result = Statistics.ofMatrix seed summary.CorrectAndTotal

        { result with
            Measures = Metrics.complete stored result.Measures
        }

    /// The statistics over all seeds, once each is finished; writes statistics.json.
    let finish (folder: string) : SeedStatistics =
        let statistics = seeds folder |> Array.map (result folder) |> Statistics.ofSeeds
        Json.save (statisticsPath folder) (Statistics.toFile statistics)
        statistics
