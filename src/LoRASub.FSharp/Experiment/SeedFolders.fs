namespace LoRASub

open System.IO

/// seeds.json.
type SeedsFile = { Seeds: int64[] }

/// A folder of runs that differ only in their seed: `seeds.json` and, in `seed-N`, a run's folder for each, then
/// `statistics.json`, whose presence means that all are finished.
[<RequireQualifiedAccess>]
module SeedFolders =

    let private seedsPath (folder: string) = Path.Combine(folder, "seeds.json")

    let statisticsPath (folder: string) = Path.Combine(folder, "statistics.json")

    /// The folder of one seed's run.
    let folderOf (folder: string) (seed: int64) = Path.Combine(folder, $"seed-{seed}")

    /// Whether a folder holds runs of several seeds.
    let holdsSeeds (folder: string) = File.Exists(seedsPath folder)

    /// Whether all of them are finished.
    let isFinished (folder: string) = File.Exists(statisticsPath folder)

    /// The seeds, in the order in which they run.
    let seeds (folder: string) : int64[] =
        (Json.load<SeedsFile> "the seeds of a folder of runs" (seedsPath folder)).Seeds

    /// Begins such a folder: the seeds, and the settings, whose own seed does not count.
    let start (folder: string) (seeds: int64[]) (settings: RunSettings) =
        Json.save (seedsPath folder) { Seeds = seeds }
        Json.write (RunFiles.settings folder) (Settings.toJson settings)

    /// Removes what runs have left in a folder, of one seed or of several: to be called while the folder is held.
    let clear (folder: string) =
        if holdsSeeds folder then
            let runs =
                Directory.GetDirectories(folder, "seed-*") |> Array.filter RunFolder.holdsRun

            // all of them first: none goes while another is in use
            let locks = runs |> Array.map RunFolder.hold

            try
                for one in runs do
                    RunFolder.clear one
                    File.Delete(RunFiles.lock' one)

                    if Array.isEmpty (Directory.GetFileSystemEntries one) then
                        Directory.Delete one
            finally
                for hold in locks do
                    hold.Dispose()

        File.Delete(statisticsPath folder)
        File.Delete(seedsPath folder)
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
