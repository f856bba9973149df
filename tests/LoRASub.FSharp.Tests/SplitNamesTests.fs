module LoRASub.Tests.SplitNamesTests

open LoRASub.Data
open Expecto

[<Tests>]
let tests =
    testList
        "SplitNames"
        [
            testCase "the role of a name, and what else it says" (fun () ->
                let training, test, validation =
                    SplitRole.Training, SplitRole.Test, SplitRole.Validation

                for name, expected in
                    [
                        "train", Some(struct (training, ""))
                        "Training Set", Some(struct (training, ""))
                        "trainingset", Some(struct (training, ""))
                        "TRAIN_IMAGES", Some(struct (training, ""))
                        "trainval", Some(struct (training, ""))
                        "train_val", Some(struct (training, ""))
                        "train2017", Some(struct (training, ""))
                        "TestImgs", Some(struct (test, ""))
                        "testing", Some(struct (test, ""))
                        "test1", Some(struct (test, ""))
                        "val", Some(struct (validation, ""))
                        "Validation-Data", Some(struct (validation, ""))
                        "dev", Some(struct (validation, ""))
                        "seg_test", Some(struct (test, "seg"))
                        "my_flowers_train", Some(struct (training, "my flowers"))
                        "contest", None
                        "trainer", None
                        "restrain", None
                        "valley", None
                        "001.Auk", None
                        "", None
                    ] do
                    Expect.equal (SplitNames.role name) expected name)

            testCase "groups hold training and held-out images of the same data" (fun () ->
                let groups names =
                    SplitNames.groups names
                    |> Array.map (fun group -> group.TrainingNames, group.TestNames, group.ValidationNames)

                Expect.equal
                    (groups [| "Train"; "test"; "valid"; "extra" |])
                    [| [| "Train" |], [| "test" |], [| "valid" |] |]
                    "one"

                Expect.equal
                    (groups [| "a_train"; "b_train"; "b_test"; "test" |])
                    [| [| "b_train" |], [| "b_test" |], [||] |]
                    "of one name"

                for alone in
                    [
                        [| "train"; "truck" |]
                        [| "test"; "val" |]
                        [| "train_station"; "test_tube" |]
                        [||]
                    ] do
                    Expect.isEmpty (groups alone) (String.concat " " alone))

            testCase "folders in a sentence" (fun () ->
                Expect.equal (SplitNames.listed [||]) "" "none"
                Expect.equal (SplitNames.listed [| "a" |]) "a/" "one"
                Expect.equal (SplitNames.listed [| "a"; "b" |]) "a/ and b/" "two"
                Expect.equal (SplitNames.listed [| "a"; "b"; "c" |]) "a/, b/ and c/" "three")
        ]
