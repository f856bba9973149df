// Learns Fashion-MNIST in two groups of classes, the second without the images of the first. docs/csharp.md explains it.
//
//     LoRASub.FSharp.CSharp [BACKBONE [DATA-FOLDER [EPOCHS]]]

using System;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using LoRASub.Core;
using LoRASub.Fluent;

var assets = Path.Combine(AppContext.BaseDirectory, "assets");
var backbone = args.ElementAtOrDefault(0) ?? Path.Combine(assets, "vit_micro_patch4_32.safetensors");
var folder = args.ElementAtOrDefault(1) ?? Path.Combine(assets, "fashion-mnist");

var options = new ClassifierOptions
{
    Epochs = int.Parse(args.ElementAtOrDefault(2) ?? "1"),
    BatchSize = 128,
    Seed = 42,
};
var progress = new Progress();

try
{
    var data = Images.FromDataset("fashion-mnist", folder);
    int[] first = [0, 1, 2, 3, 4], second = [5, 6, 7, 8, 9];

    using var classifier = ContinualClassifier.Create(backbone, options);

    // Ctrl-C ends the learning between two steps, and the classifier stays as it was
    using var interrupted = new CancellationTokenSource();
    Console.CancelKeyPress += (_, e) => { e.Cancel = true; interrupted.Cancel(); };

    foreach (var group in new[] { first, second })
    {
        var images = Images.OfClasses(data.Train, group);
        Console.WriteLine($"learning {string.Join(", ", images.ClassNames)}");
        await classifier.LearnAsync(images, progress, interrupted.Token);
    }

    Console.WriteLine(classifier.Adaptation);

    var predictions = classifier.Predict(data.Test);
    Console.WriteLine($"the first one: {predictions[0].ClassName}, score {predictions[0].Score:F3}");

    EvaluationResult result = await classifier.EvaluateAsync(data.Test, cancellationToken: interrupted.Token);
    Console.WriteLine($"{result.Correct} of {result.Images} test images correct");
    foreach (var one in result.Classes)
        Console.WriteLine($"  {one.ClassName}: {one.Accuracy:P0} of {one.Images}");
    foreach (var pair in result.Confusions.Take(3))
        Console.WriteLine($"  {pair.ClassName} taken for {pair.PredictedName}: {pair.Images}");

    var saved = Directory.CreateTempSubdirectory("classifier-").FullName;

    try
    {
        // encoded images come in any size: a PNG of 4 x 3 grey pixels
        var picture = Path.Combine(saved, "picture.png");
        byte[] png = Convert.FromBase64String("iVBORw0KGgoAAAANSUhEUgAAAAQAAAADCAAAAACRn/EaAAAAEElEQVR4nGNsYGBgYGKAEQAHPACGHozoxQAAAABJRU5ErkJggg==");
        File.WriteAllBytes(picture, png);
        using Stream stream = File.OpenRead(picture);
        Prediction[] same = [classifier.Predict(png), classifier.Predict(stream), classifier.Predict(Images.FromFiles([picture]))[0]];
        Console.WriteLine($"bytes, a stream and a file look like {string.Join(", ", same.Select(p => p.ClassName))}");

        // the score of every class
        foreach (var one in classifier.PredictTopK(Images.FromEncoded(png), int.MaxValue)[0])
            Console.WriteLine($"  {one.ClassName} {one.Score:F3}");

        classifier.AddImages(Images.FromFiles([picture]).WithClasses(same[0].ClassName));
        classifier.Rename("Shirt", "Blouse");
        classifier.Forget("Bag");

        // from any number of threads; until a change is finished, predictions use the state before it
        var learning = classifier.LearnAsync(Images.FromEncoded(png, png).WithClasses("Square"));
        Parallel.For(0, 8, _ => classifier.Predict(png));
        await learning;
        predictions = classifier.Predict(data.Test);

        classifier.Save(saved);
        using var loaded = ContinualClassifier.Load(saved, backbone, options);
        var equal = loaded.Predict(data.Test).SequenceEqual(predictions);
        Console.WriteLine(equal ? "the saved classifier predicts the same" : "the saved classifier differs");
    }
    finally
    {
        Directory.Delete(saved, recursive: true);
    }

    return 0;
}
catch (InputException e)
{
    Console.Error.WriteLine(e.Message);
    return 2;
}

/// Prints each phase. System.Progress<T> calls a delegate in its own time instead, for a user interface on its own thread.
class Progress : IProgress<LearningProgress>
{
    public void Report(LearningProgress step)
    {
        if (step.Done == 0)
            Console.WriteLine($"  {step.Phase}, {step.Total} batches");
    }
}
