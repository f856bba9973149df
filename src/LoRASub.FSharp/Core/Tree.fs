namespace LoRASub.Core

open System
open System.Collections.Generic
open TorchSharp

/// Tensors by name, such as those of a file; `origin` names it in errors.
type NamedTensors internal (origin: string, tensors: IReadOnlyDictionary<string, torch.Tensor>) =

    /// <summary>The tensor of a name.</summary>
    /// <param name="name">The full name.</param>
    /// <returns>The tensor, borrowed.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no tensor of this name.</exception>
    member _.Find(name: string) : torch.Tensor =
        match tensors.TryGetValue name with
        | true, tensor -> tensor
        | _ -> Errors.reject origin $"must hold a tensor named {name}" "no such tensor" ""

    /// <summary>Whether a name is a path or below it.</summary>
    /// <param name="path">Parts of a name with dots between them.</param>
    /// <returns>Whether any name is.</returns>
    member _.Holds(path: string) : bool =
        tensors.Keys
        |> Seq.exists (fun name -> name = path || name.StartsWith(path + ".", StringComparison.Ordinal))

    /// <summary>The number of items below a path: one more than the largest index, so that a gap is found when it
    /// is read.</summary>
    /// <param name="path">Parts of a name with dots between them.</param>
    /// <returns>0 where there are none.</returns>
    member _.Count(path: string) : int =
        let index (name: string) =
            if name.StartsWith(path + ".", StringComparison.Ordinal) then
                let rest = name.Substring(path.Length + 1)
                let dot = rest.IndexOf '.'

                match Int32.TryParse(if dot < 0 then rest else rest.Substring(0, dot)) with
                | true, i when i >= 0 && i < tensors.Count -> i
                | _ -> -1
            else
                -1

        tensors.Keys |> Seq.fold (fun last name -> max last (index name)) -1 |> (+) 1

/// How a 'T is read from, and written as, a part of an 'Owner's tensors.
type Part<'Owner, 'T> =
    {
        /// Adds the tensors that the part owns to a list.
        Collect: List<torch.Tensor> -> 'Owner -> unit
        /// The part with a function applied to each tensor that it owns, in the order of `Collect`.
        Map: (torch.Tensor -> torch.Tensor) -> 'Owner -> 'T
        /// The tensors of the part by their names below a path. Those of the value are borrowed; those made for its
        /// numbers belong to the caller's scope.
        Write: string -> 'Owner -> (string * torch.Tensor) list
        /// The inverse of `Write`. The tensors found become the value's own.
        Read: NamedTensors -> string -> 'T
    }

    /// <summary>Lists the tensors that a value owns.</summary>
    member this.Leaves: Leaves<'Owner> =
        fun owner ->
            let all = List<torch.Tensor>()
            this.Collect all owner
            all

/// The one description of a value's tensors. Lifetimes, names, saving, loading, moving and comparing follow from it.
type Tree<'T> = Part<'T, 'T>

/// `tree { let! a = Tree.field "a" _.A Tree.tensor and! b = … in return { A = a; B = b } }`
type TreeBuilder() =
    /// <summary>Ends `tree { … }`: the value made of its members.</summary>
    /// <param name="part">The members.</param>
    /// <param name="build">Makes the value.</param>
    /// <returns>The tree of the value.</returns>
    member _.BindReturn(part: Part<'Owner, 'A>, build: 'A -> 'T) : Part<'Owner, 'T> =
        {
            Collect = part.Collect
            Map = fun f owner -> build (part.Map f owner)
            Write = part.Write
            Read = fun tensors path -> build (part.Read tensors path)
        }

    /// <summary>Joins two members of `tree { … }`.</summary>
    /// <param name="left">The first member.</param>
    /// <param name="right">The second member.</param>
    /// <returns>Both, in this order.</returns>
    member _.MergeSources(left: Part<'Owner, 'A>, right: Part<'Owner, 'B>) : Part<'Owner, 'A * 'B> =
        {
            Collect =
                fun all owner ->
                    left.Collect all owner
                    right.Collect all owner
            Map =
                fun f owner ->
                    let first = left.Map f owner
                    first, right.Map f owner
            Write = fun path owner -> left.Write path owner @ right.Write path owner
            Read =
                fun tensors path ->
                    let first = left.Read tensors path
                    first, right.Read tensors path
        }

/// Opens `tree { … }`.
[<AutoOpen>]
module TreeBuilder =
    /// <summary>Describes the tensors of a record, member by member: `tree { let! a = …  and! b = …  return …
    /// }`.</summary>
    let tree = TreeBuilder()

/// Trees of the values that records are made of.
[<RequireQualifiedAccess>]
module Tree =

    let private below (path: string) (name: string) =
        if path = "" then name else $"{path}.{name}"

    /// <summary>One tensor.</summary>
    let tensor: Tree<torch.Tensor> =
        {
            Collect = fun all tensor -> all.Add tensor
            Map = fun f tensor -> f tensor
            Write = fun path tensor -> [ path, tensor ]
            Read = fun tensors path -> tensors.Find path
        }

    // Written as a tensor made for the purpose, which no value owns.
    let private number (write: 'T -> torch.Tensor) (read: torch.Tensor -> 'T) : Tree<'T> =
        {
            Collect = fun _ _ -> ()
            Map = fun _ value -> value
            Write = fun path value -> [ path, write value ]
            Read =
                fun tensors path ->
                    use onHost = (tensors.Find path).cpu()
                    read onHost
        }

    /// <summary>A number, written as an int64 tensor of one element.</summary>
    let int: Tree<int> =
        number (fun (n: int) -> torch.tensor (int64 n)) (fun t -> int (t.item<int64>()))

    /// <summary>A number, written as an int64 tensor of one element.</summary>
    let int64: Tree<int64> = number (fun (n: int64) -> torch.tensor n) _.item<int64>()

    /// <summary>A number, written as a float64 tensor of one element.</summary>
    let float: Tree<float> = number (fun (x: float) -> torch.tensor x) _.item<float>()

    /// <summary>Numbers, written as an int64 tensor [n].</summary>
    let int64s: Tree<int64[]> =
        number (fun (all: int64[]) -> torch.tensor all) _.data<int64>().ToArray()

    /// <summary>No tensor at all.</summary>
    let unit: Tree<unit> =
        {
            Collect = fun _ () -> ()
            Map = fun _ () -> ()
            Write = fun _ () -> []
            Read = fun _ _ -> ()
        }

    /// <summary>A member of a record, below the path of the record.</summary>
    /// <param name="name">The name of the member.</param>
    /// <param name="get">Reads it from the record.</param>
    /// <param name="tree">The tree of the member.</param>
    /// <returns>The member, for `tree { … }`.</returns>
    let field (name: string) (get: 'Owner -> 'T) (tree: Tree<'T>) : Part<'Owner, 'T> =
        {
            Collect = fun all owner -> tree.Collect all (get owner)
            Map = fun f owner -> tree.Map f (get owner)
            Write = fun path owner -> tree.Write (below path name) (get owner)
            Read = fun tensors path -> tree.Read tensors (below path name)
        }

    /// <summary>A member that is neither owned nor written: whoever reads the record supplies it.</summary>
    /// <param name="get">Reads it from the record.</param>
    /// <param name="value">The member of a record that is read.</param>
    /// <returns>The member, for `tree { … }`.</returns>
    let given (get: 'Owner -> 'T) (value: 'T) : Part<'Owner, 'T> =
        {
            Collect = fun _ _ -> ()
            Map = fun _ owner -> get owner
            Write = fun _ _ -> []
            Read = fun _ _ -> value
        }

    /// <summary>A member that is owned but not written, because it can be computed again.</summary>
    /// <param name="get">Reads it from the record.</param>
    /// <param name="tree">The tree of the member.</param>
    /// <param name="compute">Makes the member of a record that is read.</param>
    /// <returns>The member, for `tree { … }`.</returns>
    let computed (get: 'Owner -> 'T) (tree: Tree<'T>) (compute: unit -> 'T) : Part<'Owner, 'T> =
        {
            Collect = fun all owner -> tree.Collect all (get owner)
            Map = fun f owner -> tree.Map f (get owner)
            Write = fun _ _ -> []
            Read = fun _ _ -> compute ()
        }

    /// <summary>Items by their index, each with a tree of its own. How many there are follows from the
    /// names.</summary>
    /// <param name="item">The tree of the item at an index.</param>
    /// <returns>The tree of the array.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When the array is read: a gap among the names.</exception>
    let items (item: int -> Tree<'T>) : Tree<'T[]> =
        let at path (i: int) = below path (string i)

        {
            Collect = fun all items -> items |> Array.iteri (fun i one -> (item i).Collect all one)
            Map = fun f items -> items |> Array.mapi (fun i one -> (item i).Map f one)
            Write =
                fun path items ->
                    [
                        for i, one in Array.indexed items do
                            yield! (item i).Write (at path i) one
                    ]
            Read =
                fun tensors path ->
                    Array.init (tensors.Count path) (fun i -> (item i).Read tensors (at path i))
        }

    /// <summary>Items of one kind by their index.</summary>
    /// <param name="item">The tree of an item.</param>
    /// <returns>The tree of the array.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">When the array is read: a gap among the names.</exception>
    let array (item: Tree<'T>) : Tree<'T[]> = items (fun _ -> item)

    /// <summary>An array of items, each with its own tree.</summary>
    /// <param name="trees">One per item.</param>
    /// <returns>The tree of an array of as many items.</returns>
    let each (trees: Tree<'T>[]) : Tree<'T[]> =
        let at path i = below path (string<int> i)

        {
            Collect = fun all items -> Array.iter2 (fun tree one -> tree.Collect all one) trees items
            Map = fun f items -> Array.map2 (fun tree one -> tree.Map f one) trees items
            Write =
                fun path items ->
                    Array.zip trees items
                    |> Array.mapi (fun i (tree, one) -> tree.Write (at path i) one)
                    |> List.concat
            Read = fun tensors path -> trees |> Array.mapi (fun i tree -> tree.Read tensors (at path i))
        }

    /// <summary>Values of one kind by key.</summary>
    /// <param name="name">The name of a key.</param>
    /// <param name="keys">The keys that are read from a file, each of which must be there.</param>
    /// <param name="item">The tree of a value.</param>
    /// <returns>The tree of the map. What it writes has the map's own keys.</returns>
    let keyed (name: 'K -> string) (keys: 'K list) (item: Tree<'T>) : Tree<Map<'K, 'T>> =
        let at path key = below path (name key)

        {
            Collect = fun all items -> items |> Map.iter (fun _ one -> item.Collect all one)
            Map =
                fun f items ->
                    Map.ofList
                        [
                            for key, one in Map.toList items do
                                key, item.Map f one
                        ]
            Write =
                fun path items ->
                    [
                        for key, one in Map.toList items do
                            yield! item.Write (at path key) one
                    ]
            Read =
                fun tensors path ->
                    Map.ofList
                        [
                            for key in keys do
                                key, item.Read tensors (at path key)
                        ]
        }

    /// <summary>A value that may be absent: no tensor has its name then.</summary>
    /// <param name="some">The tree of the value.</param>
    /// <returns>The tree of the option.</returns>
    let option (some: Tree<'T>) : Tree<'T option> =
        {
            Collect = fun all value -> Option.iter (some.Collect all) value
            Map = fun f value -> Option.map (some.Map f) value
            Write = fun path value -> value |> Option.map (some.Write path) |> Option.defaultValue []
            Read =
                fun tensors path ->
                    if tensors.Holds path then
                        Some(some.Read tensors path)
                    else
                        None
        }

    /// <summary>Two values by their names.</summary>
    /// <param name="first">The name of the first.</param>
    /// <param name="a">The tree of the first.</param>
    /// <param name="second">The name of the second.</param>
    /// <param name="b">The tree of the second.</param>
    /// <returns>The tree of the pair.</returns>
    let pair (first: string) (a: Tree<'A>) (second: string) (b: Tree<'B>) : Tree<struct ('A * 'B)> =
        tree {
            let! a = field first (fun struct (a, _) -> a) a
            and! b = field second (fun struct (_, b) -> b) b
            return struct (a, b)
        }

    /// <summary>Every tensor of a value under its name.</summary>
    /// <param name="tree">The tree of the value.</param>
    /// <param name="value">Borrowed.</param>
    /// <returns>The tensors of the value, borrowed, and those made for its numbers, which belong to the scope of
    /// the caller.</returns>
    let write (tree: Tree<'T>) (value: 'T) : (string * torch.Tensor) list = tree.Write "" value

    /// <summary>The value that `write` gave these names.</summary>
    /// <param name="tree">The tree of the value.</param>
    /// <param name="origin">Names the place of the tensors in errors, such as a file.</param>
    /// <param name="tensors">Tensors by name; the value takes over those that it finds.</param>
    /// <returns>The value, owned by the caller.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">A tensor is absent.</exception>
    let read (tree: Tree<'T>) (origin: string) (tensors: IReadOnlyDictionary<string, torch.Tensor>) : 'T =
        tree.Read (NamedTensors(origin, tensors)) ""

    /// <summary>The value with a function applied to each of its tensors, such as a move to another
    /// device.</summary>
    /// <param name="f">Borrows a tensor and returns another.</param>
    /// <param name="tree">The tree of the value.</param>
    /// <param name="value">Borrowed.</param>
    /// <returns>The new value; the caller owns what `f` makes.</returns>
    let map (f: torch.Tensor -> torch.Tensor) (tree: Tree<'T>) (value: 'T) : 'T = tree.Map f value

    /// <summary>The value with other tensors in place of its own.</summary>
    /// <param name="tree">The tree of the value.</param>
    /// <param name="tensors">As many as the value has, in the order of its leaves; the result takes them
    /// over.</param>
    /// <param name="value">Borrowed.</param>
    /// <returns>The new value.</returns>
    let withLeaves (tree: Tree<'T>) (tensors: torch.Tensor[]) (value: 'T) : 'T =
        let mutable next = -1

        map
            (fun _ ->
                next <- next + 1
                tensors[next])
            tree
            value

    /// <summary>Whether two values have the same names and, under each, tensors of the same type, shape and
    /// bits.</summary>
    /// <param name="tree">The tree of both values.</param>
    /// <param name="left">Borrowed.</param>
    /// <param name="right">Borrowed.</param>
    /// <returns>Whether they are equal.</returns>
    let equal (tree: Tree<'T>) (left: 'T) (right: 'T) : bool =
        let bytes (t: torch.Tensor) =
            t.detach().cpu().contiguous().bytes.ToArray()

        let same (name, a: torch.Tensor) (other, b: torch.Tensor) =
            name = other && a.dtype = b.dtype && a.shape = b.shape && bytes a = bytes b

        Scope.run (fun () ->
            let left, right = write tree left, write tree right
            left.Length = right.Length && List.forall2 same left right)

    /// <summary>The tree of a value that is kept in another form.</summary>
    /// <param name="wrap">Makes the value of what the tree describes.</param>
    /// <param name="unwrap">The inverse of `wrap`.</param>
    /// <param name="tree">Describes the tensors of the other form.</param>
    /// <returns>The tree of the value.</returns>
    let convert (wrap: 'A -> 'B) (unwrap: 'B -> 'A) (tree: Tree<'A>) : Tree<'B> =
        {
            Collect = fun all value -> tree.Collect all (unwrap value)
            Map = fun f value -> wrap (tree.Map f (unwrap value))
            Write = fun path value -> tree.Write path (unwrap value)
            Read = fun tensors path -> wrap (tree.Read tensors path)
        }

    /// <summary>The size of a value in a file.</summary>
    /// <param name="tree">The tree of the value.</param>
    /// <param name="value">Borrowed.</param>
    /// <returns>Bytes of all tensors that are written; one that is there twice counts twice.</returns>
    let bytes (tree: Tree<'T>) (value: 'T) : int64 =
        Scope.run (fun () ->
            write tree value
            |> Seq.sumBy (fun (_, tensor) -> tensor.numel () * tensor.element_size ()))
