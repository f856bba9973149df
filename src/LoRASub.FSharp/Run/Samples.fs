namespace LoRASub.Run

open System.Runtime.InteropServices
open LoRASub.Train
open LoRASub.Data
open SkiaSharp

/// A test image with its prediction; classes are positions in the class order.
type SamplePrediction =
    {
        Task: int
        Truth: int
        Predicted: int
        /// A PNG file of at most 96 pixels a side.
        Png: byte[]
    }

/// A few test images with their predictions, for reports.
[<RequireQualifiedAccess>]
module internal Samples =

    /// The longer side of a shown image, in pixels at most.
    [<Literal>]
    let private Side = 96

    /// Tasks that are shown at most, and images of each.
    let private tasks, images = 10, 6

    let private small (picture: Picture) : Picture =
        let longer = max picture.Height picture.Width

        if longer <= Side then
            picture
        else
            let scaled extent = max 1 (extent * Side / longer)
            Picture.resize (scaled picture.Height) (scaled picture.Width) picture

    let private png (picture: Picture) : byte[] =
        ImageFile.ensureLoaded ()

        use bitmap =
            new SKBitmap(picture.Width, picture.Height, SKColorType.Rgba8888, SKAlphaType.Opaque)

        let opaque =
            Array.init (4 * picture.Height * picture.Width) (fun i ->
                if i % 4 = 3 then
                    255uy
                else
                    picture.Pixels[3 * (i / 4) + i % 4])

        Marshal.Copy(opaque, 0, bitmap.GetPixels(), opaque.Length)
        use data = bitmap.Encode(SKEncodedImageFormat.Png, 100)
        data.ToArray()

    // spread over all
    let private some (most: int) (all: 'T[]) =
        if all.Length <= most then
            all
        else
            Array.init most (fun i -> all[i * (all.Length - 1) / (most - 1)])

    /// At most six images of each of at most ten tasks, evenly spread; none where this system has no Skia. The choice
    /// does not depend on the predictions, so that runs on the same tasks show the same images.
    let choose (stream: TaskStream) (predictions: TaskPredictions[]) : SamplePrediction[] =
        let ofTask (predictions: TaskPredictions) =
            TaskStream.testIndices stream predictions.Task
            |> Array.indexed
            |> some images
            |> Array.map (fun (i, image) ->
                {
                    Task = predictions.Task.Index
                    Truth = predictions.Truth[i]
                    Predicted = predictions.Predicted[i]
                    Png = stream.Dataset.Test.Read image |> small |> png
                })

        if ImageFile.isAvailable () then
            some tasks predictions |> Array.collect ofTask
        else
            [||]
