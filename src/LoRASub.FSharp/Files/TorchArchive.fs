namespace LoRASub.Files

open System
open System.Collections.Generic
open System.Text
open LoRASub.Core
open TorchSharp

/// What `torch.save` writes since PyTorch 1.6 (.pth, .pt, .bin): a zip archive with a pickle, data.pkl, that describes
/// the objects, and one member per storage with the numbers. Nothing in it is executed (`Pickle`). Its tensors are named
/// by the keys on the way to them: {"model": {"cls_token": ...}} holds model.cls_token.
[<RequireQualifiedAccess>]
module internal TorchArchive =

    /// A checkpoint of a training program, its optimizer's state included, has less than a megabyte.
    let private longestPickle = 1 <<< 22

    /// Dictionaries and lists inside each other.
    let private deepest = 16

    let private mostValues = 1_000_000

    // Tied weights are stored once.
    [<Literal>]
    let private mostCopies = 100L

    // Each tensor's name is a text of its own, though its keys may be shared.
    [<Literal>]
    let private longestName = 1000

    // Of all names together.
    [<Literal>]
    let private mostLetters = 100_000_000

    let private storages =
        Map.ofList
            [
                "torch.DoubleStorage", torch.ScalarType.Float64
                "torch.FloatStorage", torch.ScalarType.Float32
                "torch.HalfStorage", torch.ScalarType.Float16
                "torch.BFloat16Storage", torch.ScalarType.BFloat16
                "torch.LongStorage", torch.ScalarType.Int64
                "torch.IntStorage", torch.ScalarType.Int32
                "torch.ShortStorage", torch.ScalarType.Int16
                "torch.CharStorage", torch.ScalarType.Int8
                "torch.ByteStorage", torch.ScalarType.Byte
                "torch.BoolStorage", torch.ScalarType.Bool
            ]

    [<Literal>]
    let private Tensor = "torch._utils._rebuild_tensor_v2"

    [<Literal>]
    let private Parameter = "torch._utils._rebuild_parameter"

    let private allowed =
        // the last: a training program's arguments, which are not read
        Set.ofList [ Pickle.OrderedDictionary; Tensor; Parameter; "argparse.Namespace" ]
        + Set.ofSeq storages.Keys

    /// A tensor as a view of a storage.
    type private View =
        {
            Entry: TensorEntry
            /// The storage's member.
            Member: string
            /// Elements of the storage.
            Count: int64
            /// Elements before the first.
            Start: int64
            Strides: int64[]
        }

    let private (|Integers|_|) (value: Pickled) =
        match value with
        | Pickled.Items items ->
            let numbers =
                items
                |> Seq.choose (fun item ->
                    match item with
                    | Pickled.Integer n -> Some n
                    | _ -> None)
                |> Array.ofSeq

            if numbers.Length = items.Count then Some numbers else None
        | _ -> None

    /// The last element of a view, from the start of its storage; -1 where it has none.
    let private last (view: View) : bigint =
        if Array.contains 0L view.Entry.Shape then
            -1I
        else
            Array.fold2
                (fun sum (size: int64) (stride: int64) -> sum + (bigint size - 1I) * bigint stride)
                (bigint view.Start)
                view.Entry.Shape
                view.Strides

    let rec private view (archive: Archive) (root: string) (name: string) (value: Pickled) : View option =
        let subject = TensorBytes.tensorOf archive.Path name

        match value with
        | Pickled.Call(Parameter, data :: _) -> view archive root name data
        | Pickled.Call(Tensor,
                       Pickled.Persistent(Pickled.Items storage) :: Pickled.Integer start :: Integers shape :: Integers strides :: _) when
            storage.Count = 5
            ->
            match storage[0], storage[1], storage[2], storage[4] with
            | Pickled.Text "storage", Pickled.Global kind, Pickled.Text key, Pickled.Integer count when
                storages.ContainsKey kind
                ->
                let dtype = storages[kind]
                let one = Archive.find $"{root}data/{key}" archive
                let size = TensorBytes.elementSize dtype

                if count < 0L || one.Length % size <> 0L || one.Length / size <> count then
                    Errors.reject
                        subject
                        $"must have a storage of {count} elements of {size} bytes"
                        $"{one.Length} bytes"
                        "the file is damaged; download it again"

                if shape |> Array.exists (fun n -> n < 0L) then
                    Errors.reject subject "must have sizes of at least 0" (Shape.text shape) ""

                if strides.Length <> shape.Length || strides |> Array.exists (fun n -> n < 0L) then
                    Errors.reject
                        subject
                        $"must have {shape.Length} strides of at least 0"
                        (Shape.text strides)
                        ""

                let view =
                    {
                        Entry =
                            {
                                Name = name
                                Type = dtype
                                Shape = shape
                                Offset = 0L
                                Length = TensorBytes.length subject dtype shape
                            }
                        Member = one.FullName
                        Count = count
                        Start = start
                        Strides = strides
                    }

                // an expanded tensor would take more memory than its storage
                if start < 0L || view.Entry.Length > one.Length || last view >= bigint count then
                    let received =
                        $"shape {Shape.text shape} with strides {Shape.text strides} from element {start}"

                    Errors.reject
                        subject
                        $"must lie in its storage of {count} elements"
                        (TensorBytes.shown received)
                        ""

                Some
                    { view with
                        View.Entry.Offset = start * size
                    }
            | _ ->
                Errors.reject subject "must have a storage with a type, a key and a size" "another value" ""
        | Pickled.Call(name, _) when name = Tensor || name = Parameter ->
            Errors.reject subject "must have a storage, an offset, a shape and strides" "other arguments" ""
        | _ -> None

    let private keyText (path: string) (key: Pickled) =
        match key with
        | Pickled.Text text -> text
        | Pickled.Integer n -> string n
        | _ -> Errors.reject path "must have text or whole numbers as keys" "another key" ""

    /// The tensors below a value, named by the keys on the way.
    let private views (archive: Archive) (root: string) (value: Pickled) : View[] =
        let names = HashSet<string>(StringComparer.Ordinal)
        let found = List<View>()
        let mutable visited = 0
        let mutable letters = 0

        let rec visit (depth: int) (name: string) (value: Pickled) =
            // a list may hold itself, or many times another that holds many
            visited <- visited + 1

            if name.Length > longestName then
                Errors.reject
                    $"{archive.Path}: '{TensorBytes.shown name}'"
                    $"must have at most {longestName} characters"
                    $"{name.Length}"
                    ""

            letters <- letters + name.Length

            if letters > mostLetters then
                Errors.reject
                    archive.Path
                    $"must have names of at most {mostLetters} letters in all"
                    "more"
                    ""

            if depth > deepest || visited > mostValues then
                let where = $"{archive.Path}: '{TensorBytes.shown name}'"
                Errors.reject where $"must have at most {deepest} levels and {mostValues} values" "more" ""

            let below key =
                if name = "" then key else name + "." + key

            match value with
            | Pickled.Pairs pairs ->
                for struct (key, item) in pairs do
                    visit (depth + 1) (below (keyText archive.Path key)) item
            | Pickled.Items items when items.Count > 0 ->
                items |> Seq.iteri (fun i item -> visit (depth + 1) (below (string i)) item)
            | other ->
                match view archive root name other with
                | Some view ->
                    if not (names.Add name) then
                        Errors.reject (TensorBytes.tensorOf archive.Path name) "must be there once" "twice" ""

                    found.Add view
                | None -> ()

        visit 0 "" value
        found.ToArray()

    let private read (archive: Archive) : View[] =
        let pickles =
            archive.Members.Keys
            |> Seq.filter (fun name ->
                name = "data.pkl" || name.EndsWith("/data.pkl", StringComparison.Ordinal))
            |> Array.ofSeq

        let root =
            match pickles with
            | [| one |] -> one.Substring(0, one.Length - "data.pkl".Length)
            | several -> Errors.reject archive.Path "must have one data.pkl" $"{several.Length}" ""

        if archive.Members.ContainsKey(root + "constants.pkl") then
            Errors.reject
                archive.Path
                "must hold tensors only"
                "a TorchScript program"
                "save its state_dict() in Python"

        match Map.tryFind (root + "byteorder") archive.Members with
        | Some one ->
            match Encoding.Latin1.GetString(Archive.bytes 16 one archive) with
            | "little" -> ()
            | other -> Errors.reject archive.Path "must have the byte order 'little'" $"'{other}'" ""
        | None -> ()

        archive
        |> Archive.bytes longestPickle (Archive.find (root + "data.pkl") archive)
        |> Pickle.read $"{archive.Path}: zip member data.pkl" allowed
        |> views archive root

    /// Names, types and shapes. Rejects a file that is not well-formed, or names a global that tensors do not need.
    let header (path: string) : TensorFileHeader =
        {
            Path = path
            Entries = Archive.using path read |> Array.map _.Entry
            Metadata = Map.empty
        }

    /// The wanted tensors on the CPU in the file's types, contiguous, owned by the caller. Rejects as `header`, and a
    /// storage with another checksum.
    let readOnly (wanted: string -> bool) (path: string) : TensorFile =
        Archive.using path (fun archive ->
            let views = read archive |> Array.filter (fun view -> wanted view.Entry.Name)

            // views of one storage become tensors of their own
            let total = views |> Array.sumBy _.Entry.Length

            let stored =
                views
                |> Array.distinctBy _.Member
                |> Array.sumBy (fun view -> (Archive.find view.Member archive).Length)

            if total > mostCopies * stored then
                Errors.reject
                    path
                    $"must have tensors of at most {mostCopies} times the bytes that it stores"
                    $"{total} bytes of {stored}"
                    ""

            // a storage is read once, for all its tensors
            let tensorsIn (key: string, views: View[]) =
                let one, first = Archive.find key archive, views[0]

                for other in views do
                    if other.Entry.Type <> first.Entry.Type then
                        let subject = TensorBytes.tensorOf path other.Entry.Name
                        let rule = $"must have {first.Entry.Type}, as other tensors of its storage"
                        Errors.reject subject rule $"{other.Entry.Type}" ""

                let storage =
                    archive
                    |> Archive.whole one (fun fill ->
                        TensorBytes.read
                            (TensorBytes.tensorOf path first.Entry.Name)
                            first.Entry.Type
                            [| first.Count |]
                            fill)

                views
                |> Array.map (fun view ->
                    view.Entry.Name,
                    storage.as_strided(view.Entry.Shape, view.Strides, view.Start).contiguous())

            Scope.keep Safetensors.leaves (fun () ->
                {
                    Path = path
                    Tensors = views |> Array.groupBy _.Member |> Array.collect tensorsIn |> Map.ofArray
                    Metadata = Map.empty
                }))
