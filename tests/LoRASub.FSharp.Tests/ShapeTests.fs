module LoRASub.Tests.ShapeTests

open LoRASub.Core
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Shape" name law

type Pair =
    {
        [<Between(0, 4)>]
        Rows: int
        [<Between(0, 4)>]
        Columns: int
        [<Between(0, 4)>]
        ExpectedRows: int
        [<Between(0, 4)>]
        ExpectedColumns: int
    }

[<Tests>]
let tests =
    testList
        "Shape"
        [
            testCase "text" (fun () ->
                Expect.equal (Shape.text [ 2L; 3L ]) "[2, 3]" "two axes"
                Expect.equal (Shape.text []) "[]" "a scalar")

            property "expect accepts exactly the shapes that fit" (fun (c: Pair) ->
                let t = torch.zeros (int64 c.Rows, int64 c.Columns)
                let fixedAxes = [ Axis.Is c.ExpectedRows; Axis.Is c.ExpectedColumns ]

                if (c.Rows, c.Columns) = (c.ExpectedRows, c.ExpectedColumns) then
                    Shape.expect "t" fixedAxes t
                else
                    refused
                        [
                            "t: must have shape "
                            $"[{c.ExpectedRows}, {c.ExpectedColumns}]"
                            $"found [{c.Rows}, {c.Columns}]"
                        ]
                        (fun () -> Shape.expect "t" fixedAxes t)

                Shape.expect "t" [ Axis.Any "rows"; Axis.Is c.Columns ] t)

            rejects "too few axes" [ "t"; "[batch, 3]"; "found [3]" ] (fun () ->
                Shape.expect "t" [ Axis.Any "batch"; Axis.Is 3L ] (torch.zeros 3L))

            rejects "too many axes" [ "[batch]"; "found [3, 3]" ] (fun () ->
                Shape.expect "t" [ Axis.Any "batch" ] (torch.zeros (3L, 3L)))

            testCase "expectLike accepts a neighbour of another shape" (fun () ->
                Scope.run (fun () -> Shape.expectLike "t" (torch.zeros (3L, 3L)) (torch.zeros 1L)))

            rejects "expectLike refuses another type" [ "t"; "must be Float64"; "found Float32" ] (fun () ->
                Shape.expectLike "t" (torch.zeros (1L, dtype = torch.float64)) (torch.zeros 1L))

            rejects "expectLike refuses another device" [ "t"; "must be on meta"; "found cpu" ] (fun () ->
                Shape.expectLike "t" (torch.zeros (1L, device = torch.META)) (torch.zeros 1L))
        ]
