namespace LoRASub.Data

open System.Threading.Tasks

/// Work that runs ahead of its consumer, a few items at a time.
[<RequireQualifiedAccess>]
module internal Prefetch =

    /// One function per item, which gives the item's result. `prepare` runs on the calling thread and makes the item's
    /// job, which runs on the thread pool: asking for an item starts it, if it has not begun, and the `ahead` items
    /// after it. At most that many unasked results are held; asked again, an item is made again. A job's error reaches
    /// the consumer of the item. Items that are no longer needed end by themselves, so results must need no
    /// disposal.
    let ahead (ahead: int) (count: int) (prepare: int -> unit -> 'T) : (unit -> 'T)[] =
        let running = Array.zeroCreate<Task<'T>> count
        let mutable begun = -1

        let start i =
            if isNull running[i] then
                let job = prepare i
                running[i] <- Task.Run(fun () -> job ())

        let take i =
            lock running (fun () ->
                start i

                for later in max i begun + 1 .. min (count - 1) (i + ahead) do
                    start later

                begun <- max begun (min (count - 1) (i + ahead))
                let task = running[i]
                running[i] <- null
                task)

        Array.init count (fun i -> fun () -> (take i).GetAwaiter().GetResult())
