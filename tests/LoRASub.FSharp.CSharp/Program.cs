// Learns Fashion-MNIST in two groups of classes, the second without the images of the first:
//
//     LoRASub.FSharp.CSharp [BACKBONE [DATA-FOLDER [EPOCHS]]]

using System;
using System.IO;
using System.Linq;
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
    Progress = step =>
    {
        if (step.Done == 0)
            Console.WriteLine($"  {step.Phase}, {step.Total} batches");
    },
};

try
{
    var data = Images.FromDataset("fashion-mnist", folder);
    int[] first = [0, 1, 2, 3, 4], second = [5, 6, 7, 8, 9];

    using var classifier = ContinualClassifier.Create(backbone, options);

    foreach (var group in new[] { first, second })
    {
        var names = group.Select(label => data.ClassNames[label]).ToArray();
        Console.WriteLine($"learning {string.Join(", ", names)}");
        classifier.Learn(names, Images.OfClasses(data.Train, group));
    }

    Console.WriteLine(classifier.Adaptation);

    var predictions = classifier.Predict(data.Test);
    var correct = predictions.Where((p, i) => p.ClassName == data.ClassNames[data.Test.Labels[i]]).Count();
    Console.WriteLine($"{correct} of {predictions.Length} test images right");
    Console.WriteLine($"the first one: {predictions[0].ClassName}, score {predictions[0].Score:F3}");

    var saved = Directory.CreateTempSubdirectory("classifier-").FullName;

    try
    {
        // image files come in any size: a PNG of 4 x 3 grey pixels
        var picture = Path.Combine(saved, "picture.png");
        File.WriteAllBytes(picture, Convert.FromBase64String("iVBORw0KGgoAAAANSUhEUgAAAAQAAAADCAAAAACRn/EaAAAAEElEQVR4nGNsYGBgYGKAEQAHPACGHozoxQAAAABJRU5ErkJggg=="));
        Console.WriteLine($"a file looks like {classifier.Predict(Images.FromFiles([picture]))[0].ClassName}");

        classifier.Save(saved);
        using var loaded = ContinualClassifier.Load(saved, backbone, options);
        var same = loaded.Predict(data.Test).SequenceEqual(predictions);
        Console.WriteLine(same ? "the saved classifier predicts the same" : "the saved classifier differs");
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
