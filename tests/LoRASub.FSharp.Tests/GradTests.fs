module LoRASub.Tests.GradTests

open LoRASub.Core
open LoRASub.Backbone
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Grad" name law

type Logits =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 8)>]
        Rows: int
        [<Between(1, 6)>]
        Classes: int
    }

let private crossEntropy labels (ps: torch.Tensor[]) =
    torch.nn.functional.cross_entropy (ps[0], labels)

let private square (ps: torch.Tensor[]) = ps[0].mul(ps[0]).sum()
let private input () = tensor (normalMatrix 1 2 3)

let private leaves struct (value: torch.Tensor, gradients: Gradients) =
    value :: (gradients |> Array.choose id |> List.ofArray)

[<Tests>]
let tests =
    testList
        "Grad"
        [
            property "cross entropy and its gradient ≡ the loops" (fun (c: Logits) ->
                let logits = normalMatrix c.Seed c.Rows c.Classes
                let labels = integers c.Seed c.Classes c.Rows
                let expected, slopes = Oracles.crossEntropy labels logits

                let struct (value, gradients) =
                    Grad.valueAndGrad (crossEntropy (labelTensor labels)) [| tensor logits |]

                close "value" [ expected ] (numbers value)
                closeMatrix "gradient" slopes gradients[0].Value)

            property "parameters keep their bits, their flags and no gradient" (fun (c: Logits) ->
                let plain, tracked =
                    tensor (normalMatrix c.Seed c.Rows c.Classes), tensor (normalMatrix c.Seed c.Rows 1)

                tracked.requires_grad_ () |> ignore
                let before = [ plain.clone (); tracked.detach().clone() ]

                Grad.valueAndGrad (fun ps -> ps[0].mul(ps[1]).sum()) [| plain; tracked |]
                |> ignore

                List.iter2 (identical "bits") before [ plain; tracked.detach () ]
                Expect.equal (plain.requires_grad, tracked.requires_grad) (false, true) "flags"
                Expect.isNull tracked.grad "no gradient on the caller's tensor")

            testCase "a parameter that the value does not use has no gradient" (fun () ->
                Scope.run (fun () ->
                    let struct (_, gradients) = Grad.valueAndGrad square [| input (); input () |]
                    Expect.isSome gradients[0] "used"
                    Expect.isNone gradients[1] "unused"))

            testCase "a constant has no gradients" (fun () ->
                Scope.run (fun () ->
                    let struct (value, gradients) =
                        Grad.valueAndGrad (fun _ -> torch.ones 1L) [| input () |]

                    Expect.equal (value.item<single>()) 1.0f "value"
                    Expect.equal gradients [| None |] "none"))

            testCase "extra results carry no graph" (fun () ->
                Scope.run (fun () ->
                    let x = input ()

                    let struct (value, extra, _) =
                        Grad.valueAndGradWith (fun ps -> struct (square ps, [| ps[0].exp() |])) [| x |]

                    Expect.isFalse (value.requires_grad || extra[0].requires_grad) "detached"
                    closeTensors "extra" (x.exp ()) extra[0]))

            testCase "the caller's no_grad does not switch gradients off" (fun () ->
                Scope.run (fun () ->
                    use _ = torch.no_grad ()
                    let x = input ()
                    let struct (_, gradients) = Grad.valueAndGrad square [| x |]
                    Expect.isSome gradients[0] "a gradient"
                    closeTensors "2x" (x.add x) gradients[0].Value
                    Expect.isFalse (torch.is_grad_enabled ()) "the caller's mode is as it was"))

            testCase "without parameters nothing else gets a gradient" (fun () ->
                Scope.run (fun () ->
                    let captured = (input ()).requires_grad_()
                    let struct (_, gradients) = Grad.valueAndGrad (fun _ -> captured.sum ()) [||]
                    Expect.isEmpty gradients "no gradients"
                    Expect.isNull captured.grad "the captured tensor is untouched"))

            rejects "a value that is not a scalar" [ "scalar"; "[2, 3]" ] (fun () ->
                Grad.valueAndGrad (fun ps -> ps[0]) [| input () |] |> ignore)

            // through LibTorch's code an exception would end the process
            testCase "a failure in the backward pass reaches the caller" (fun () ->
                Scope.run (fun () ->
                    let mutable passes = 0

                    let fails (ps: torch.Tensor[]) =
                        passes <- passes + 1

                        if passes = 2 then
                            failwith "second pass"

                        ps[0].square()

                    let gradients () =
                        Grad.valueAndGrad (fun ps -> (Recomputation.run fails ps).sum()) [| input () |]
                        |> ignore

                    Expect.throwsC gradients (fun e -> Expect.equal e.Message "second pass" "message")))

            testCase "gradients on the meta device" (fun () ->
                Scope.run (fun () ->
                    let struct (value, gradients) = Grad.valueAndGrad square [| onMeta (input ()) |]
                    expectMeta [] value
                    expectMeta [ 2L; 3L ] gradients[0].Value))

            noLeaks "valueAndGrad" input (fun x -> leaves (Grad.valueAndGrad square [| x; x |]))
            noLeaks "valueAndGrad of a constant" input (fun x ->
                leaves (Grad.valueAndGrad (fun _ -> torch.ones 1L) [| x |]))

            noLeaks "valueAndGrad that throws" input (fun x ->
                try
                    Grad.valueAndGrad (fun ps -> ps[0].mul ps[0]) [| x |] |> ignore
                with :? InputException ->
                    ()

                [])
        ]
