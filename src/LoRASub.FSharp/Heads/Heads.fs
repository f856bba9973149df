namespace LoRASub.Heads

open LoRASub.Core

/// The heads that can be chosen by name: the only list of them.
[<RequireQualifiedAccess>]
module Heads =

    /// <summary>The classifier that a method brings itself: a head without a state, for which
    /// `Learner.deploy` asks the method.</summary>
    let logits: Head<unit> =
        {
            Info =
                {
                    Name = "logits"
                    Summary = "the method's own classifier"
                    Source = "the method's paper"
                }
            Tree = Tree.unit
            Zero = fun _ _ _ -> ()
            Grow = fun _ () -> ()
            Observe = fun _ _ () -> ()
            Merge = fun () () -> ()
            Forget = fun _ () -> ()
            Transport = None
            Scores =
                fun () ->
                    Errors.reject
                        "head logits"
                        "must take its scores from a method's own classifier"
                        "no method"
                        "use `Learner.deploy`"
        }

    /// <summary>Every head that has a name.</summary>
    let all: AnyHead list = [ Head.hide NearestMean.head; Head.hide logits ]

    /// <summary>Their names.</summary>
    let names = all |> List.map _.Info.Name

    /// <summary>The head of a name.</summary>
    /// <param name="name">One of `names`.</param>
    /// <returns>The head over hidden states.</returns>
    /// <exception cref="T:LoRASub.Core.InputException">There is no head of this name.</exception>
    let find (name: string) : AnyHead =
        match all |> List.tryFind (fun head -> head.Info.Name = name) with
        | Some head -> head
        | None ->
            Errors.reject
                "head"
                $"""must be one of {String.concat ", " names}"""
                $"'{name}'"
                (Errors.didYouMean names name)
