namespace LoRASub.Files

open System
open System.Buffers.Binary
open System.Collections.Generic
open System.Text
open LoRASub.Core

/// What a pickle describes. Nothing of it is made, imported or called.
[<RequireQualifiedAccess; ReferenceEquality>]
type internal Pickled =
    /// Python's None.
    | Nothing
    | Truth of bool
    | Integer of int64
    | Real of float
    | Text of string
    /// A list, or a tuple.
    | Items of List<Pickled>
    /// A dictionary, in its order.
    | Pairs of List<struct (Pickled * Pickled)>
    /// A class or function, by its name.
    | Global of string
    /// A global and its arguments.
    | Call of name: string * arguments: Pickled list
    /// An object that is not in the pickle, by its identity there.
    | Persistent of Pickled

/// A reader of Python's pickles (docs.python.org, "pickletools") that executes nothing: it knows the instructions that
/// `torch.save` writes (protocol 2), and a global is a name out of a given set, never code. Memory and time are bounded
/// by the pickle's length.
[<RequireQualifiedAccess>]
module internal Pickle =

    /// The dictionary that remembers its order: here, a dictionary.
    [<Literal>]
    let OrderedDictionary = "collections.OrderedDict"

    /// Reads one pickle. Rejects, under the name `subject`, a global outside `allowed`, an unknown instruction, and one
    /// that lacks its operands.
    let read (subject: string) (allowed: Set<string>) (bytes: byte[]) : Pickled =
        let stack = List<Pickled>()
        let marks = Stack<int>()
        let memo = Dictionary<int, Pickled>()
        let mutable at = 0

        let refuse rule received : 'T =
            Errors.reject
                $"{subject}, byte {at}"
                rule
                received
                "do not use the file; a network is saved by its state_dict()"

        let take count =
            if count < 0 || count > bytes.Length - at then
                refuse $"must have {count} more bytes" $"{bytes.Length - at}"

            let taken = ReadOnlySpan(bytes, at, count).ToArray()
            at <- at + count
            taken

        let byte () = int (Array.head (take 1))

        let int32 () =
            BinaryPrimitives.ReadInt32LittleEndian(ReadOnlySpan(take 4))

        let text (raw: byte[]) =
            try
                UTF8Encoding(false, true).GetString raw
            with :? ArgumentException ->
                refuse "must hold text in UTF-8" "other bytes"

        let line () =
            match Array.IndexOf(bytes, 10uy, at) with
            | -1 -> refuse "must end a global's name" "the end"
            | found ->
                let name = text (take (found - at))
                at <- at + 1
                name

        let push value = stack.Add value

        /// Where the values after the last mark begin, or all.
        let floor () =
            if marks.Count = 0 then 0 else marks.Peek()

        let pop () =
            if stack.Count <= floor () then
                refuse "must have an operand for each instruction" "none"

            let top = stack[stack.Count - 1]
            stack.RemoveAt(stack.Count - 1)
            top

        let popMarked () =
            if marks.Count = 0 then
                refuse "must have a mark for each instruction that needs one" "none"

            let from = marks.Pop()
            let some = stack.GetRange(from, stack.Count - from)
            stack.RemoveRange(from, stack.Count - from)
            some

        let popItems count =
            let some = List<Pickled>()

            for _ in 1..count do
                some.Insert(0, pop ())

            some

        let put index =
            match pop () with
            | top ->
                memo[index] <- top
                push top

        let get index =
            match memo.TryGetValue index with
            | true, value -> push value
            | _ -> refuse "must remember what it reads again" $"nothing at {index}"

        let extend (values: List<Pickled>) =
            match pop () with
            | Pickled.Items items as list ->
                if values.Contains list then
                    refuse "must not hold itself" "a list in itself"

                items.AddRange values
                push list
            | _ -> refuse "must append to a list" "another value"

        let set (values: List<Pickled>) =
            match pop () with
            | Pickled.Pairs pairs as dictionary when values.Count % 2 = 0 ->
                for i in 0..2 .. values.Count - 2 do
                    pairs.Add(struct (values[i], values[i + 1]))

                push dictionary
            | _ -> refuse "must set pairs in a dictionary" "another value"

        let nameOf value =
            match value with
            | Pickled.Global name -> name
            | _ -> refuse "must call a global" "another value"

        let mutable result = None

        while result.IsNone do
            let code = byte ()

            match code with
            | 0x80 -> // PROTO
                match byte () with
                | 2
                | 3 -> ()
                | other -> refuse "must have protocol 2, as torch.save writes it" $"{other}"
            | 0x2E -> result <- Some(pop ()) // STOP
            | 0x28 -> marks.Push stack.Count // MARK
            | 0x4E -> push Pickled.Nothing // NONE
            | 0x88 -> push (Pickled.Truth true) // NEWTRUE
            | 0x89 -> push (Pickled.Truth false) // NEWFALSE
            | 0x4A -> push (Pickled.Integer(int64 (int32 ()))) // BININT
            | 0x4B -> push (Pickled.Integer(int64 (byte ()))) // BININT1
            | 0x4D ->
                push (Pickled.Integer(int64 (BinaryPrimitives.ReadUInt16LittleEndian(ReadOnlySpan(take 2))))) // BININT2
            | 0x8A -> // LONG1: two's complement
                match byte () with
                | 0 -> push (Pickled.Integer 0L)
                | count when count <= 8 ->
                    let raw = take count
                    let sign = if raw[count - 1] >= 128uy then 255uy else 0uy
                    let wide = Array.append raw (Array.create (8 - count) sign)
                    push (Pickled.Integer(BinaryPrimitives.ReadInt64LittleEndian(ReadOnlySpan wide)))
                | count -> refuse "must hold whole numbers of at most 8 bytes" $"{count} bytes"
            | 0x47 -> push (Pickled.Real(BinaryPrimitives.ReadDoubleBigEndian(ReadOnlySpan(take 8)))) // BINFLOAT
            | 0x58 -> push (Pickled.Text(text (take (int32 ())))) // BINUNICODE
            | 0x5D -> push (Pickled.Items(List())) // EMPTY_LIST
            | 0x29 -> push (Pickled.Items(List())) // EMPTY_TUPLE
            | 0x7D -> push (Pickled.Pairs(List())) // EMPTY_DICT
            | 0x85 -> push (Pickled.Items(popItems 1)) // TUPLE1
            | 0x86 -> push (Pickled.Items(popItems 2)) // TUPLE2
            | 0x87 -> push (Pickled.Items(popItems 3)) // TUPLE3
            | 0x74 -> push (Pickled.Items(popMarked ())) // TUPLE
            | 0x61 -> extend (popItems 1) // APPEND
            | 0x65 -> extend (popMarked ()) // APPENDS
            | 0x73 -> set (popItems 2) // SETITEM
            | 0x75 -> set (popMarked ()) // SETITEMS
            | 0x71 -> put (byte ()) // BINPUT
            | 0x72 -> put (int32 ()) // LONG_BINPUT
            | 0x68 -> get (byte ()) // BINGET
            | 0x6A -> get (int32 ()) // LONG_BINGET
            | 0x63 -> // GLOBAL
                let owner = line ()
                let name = owner + "." + line ()

                if not (allowed.Contains name) then
                    refuse
                        "must name only what weights need"
                        $"'{TensorBytes.shown name}', which is not executed"

                push (Pickled.Global name)
            | 0x51 -> push (Pickled.Persistent(pop ())) // BINPERSID
            | 0x52 // REDUCE
            | 0x81 -> // NEWOBJ
                let arguments = pop ()
                let name = nameOf (pop ())

                match arguments with
                | Pickled.Items items when name = OrderedDictionary && items.Count = 0 ->
                    push (Pickled.Pairs(List()))
                | Pickled.Items items -> push (Pickled.Call(name, List.ofSeq items))
                | _ -> refuse "must call with a tuple" "another value"
            // attributes, such as the versions of modules that PyTorch adds to a state dict
            | 0x62 -> // BUILD
                pop () |> ignore
                push (pop ())
            | other -> refuse "must have only the instructions of torch.save" $"0x{other:X2}"

        if at <> bytes.Length then
            refuse "must end with its value" $"{bytes.Length - at} more bytes"

        result.Value
