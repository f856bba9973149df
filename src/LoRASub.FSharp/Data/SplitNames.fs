namespace LoRASub.Data

open System.Text.RegularExpressions

/// What a folder of a split is for.
[<RequireQualifiedAccess>]
type internal SplitRole =
    | Training
    | Test
    | Validation

/// Folders that belong together by their names, such as `seg_train` and `seg_test`.
type internal SplitFolders =
    {
        TrainingNames: string[]
        TestNames: string[]
        ValidationNames: string[]
    }

/// The names that people give to the folders of training and held-out images.
[<RequireQualifiedAccess>]
module internal SplitNames =

    let private spellings =
        [
            SplitRole.Training, "train|training|trn|trainval"
            SplitRole.Test, "test|testing|tst"
            SplitRole.Validation, "val|valid|validation|dev|eval|evaluation|holdout|heldout"
        ]
        |> List.map (fun (role, words) ->
            role, Regex $@"^({words})(set|data|dataset|split|images?|imgs?)?\d*$")

    /// Words that do not describe the images of a folder.
    let private fillers =
        set [ "set"; "data"; "dataset"; "split"; "image"; "images"; "img"; "imgs" ]

    let private roleOfWord (word: string) =
        spellings
        |> List.tryPick (fun (role, spelling) -> if spelling.IsMatch word then Some role else None)

    /// The role in a name, and the rest of it: `flowers_Test` is the test images of "flowers".
    let role (name: string) : struct (SplitRole * string) option =
        let words =
            Regex.Split(name, @"[^\p{L}\p{N}]+|(?<=\p{Ll})(?=\p{Lu})")
            |> Array.map _.ToLowerInvariant()

        let isRole word = (roleOfWord word).IsSome
        let roles = words |> Array.choose roleOfWord

        let rest =
            words
            |> Array.filter (fun word -> word <> "" && not (isRole word || fillers.Contains word))
            |> String.concat " "

        // `train_val` trains
        if Array.contains SplitRole.Training roles then
            Some(struct (SplitRole.Training, rest))
        else
            Array.tryHead roles |> Option.map (fun role -> struct (role, rest))

    /// Whether a name consists of the role only.
    let isBare (name: string) : bool =
        match role name with
        | Some(struct (_, "")) -> true
        | _ -> false

    /// Whether a folder of this name inside a split contains its classes: the name repeats a role or has no meaning.
    let isWrapper (name: string) : bool =
        (role name).IsSome || fillers.Contains(name.ToLowerInvariant())

    /// The groups of folders that hold both training and held-out images by their names.
    let groups (names: string[]) : SplitFolders[] =
        names
        |> Array.choose (fun name -> role name |> Option.map (fun struct (role, rest) -> rest, (role, name)))
        |> Array.groupBy fst
        |> Array.map (fun (_, members) ->
            let of' role =
                members
                |> Array.choose (fun (_, (its, name)) -> if its = role then Some name else None)

            {
                TrainingNames = of' SplitRole.Training
                TestNames = of' SplitRole.Test
                ValidationNames = of' SplitRole.Validation
            })
        |> Array.filter (fun group ->
            group.TrainingNames.Length > 0
            && group.TestNames.Length + group.ValidationNames.Length > 0)

    /// "a/", "a/ and b/", "a/, b/ and c/".
    let listed (names: string[]) : string =
        let folders = names |> Array.map (fun name -> name + "/")

        if folders.Length < 2 then
            String.concat "" folders
        else
            let first = folders[.. folders.Length - 2] |> String.concat ", "
            $"{first} and {Array.last folders}"
