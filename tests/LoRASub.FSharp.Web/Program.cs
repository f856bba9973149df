// A classifier behind HTTP. docs/web.md explains it and has measurements.
//
//     LoRASub.FSharp.Web LEARNER [BACKBONE] [--urls http://127.0.0.1:5000]
//
//     GET  /classes
//     POST /predict?top=3      an image as the body, or images as a form's files
//     POST /classes/NAME       images as a form's files, which the class learns from

using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using LoRASub.Core;
using LoRASub.Fluent;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Logging;

var paths = args.TakeWhile(arg => !arg.StartsWith('-')).ToArray();
if (paths.Length == 0)
{
    Console.Error.WriteLine("LoRASub.FSharp.Web LEARNER [BACKBONE] [--urls http://127.0.0.1:5000]");
    return 2;
}

var folder = paths[0];
var backbone = paths.ElementAtOrDefault(1)
    ?? Path.Combine(AppContext.BaseDirectory, "assets", "vit_micro_patch4_32.safetensors");

var builder = WebApplication.CreateBuilder(args[paths.Length..]);
builder.Logging.AddFilter("Microsoft.AspNetCore", LogLevel.Warning);
builder.WebHost.ConfigureKestrel(server => server.Limits.MaxRequestBodySize = 10_000_000);

await using var app = builder.Build();
using var classifier = File.Exists(Path.Combine(folder, "learner.json"))
    ? ContinualClassifier.Load(folder, backbone)
    : ContinualClassifier.Create(backbone);

// what the library rejects is the client's error, and its message says why
app.Use(async (context, next) =>
{
    try
    {
        await next(context);
    }
    catch (InputException e)
    {
        context.Response.StatusCode = StatusCodes.Status400BadRequest;
        await context.Response.WriteAsJsonAsync(new { error = e.Message });
    }
});

app.MapGet("/classes", () => classifier.ClassNames);

app.MapPost("/predict", async (HttpRequest request, CancellationToken cancellation, int top = 1) =>
{
    var images = await Received(request, cancellation);
    return await classifier.PredictTopKAsync(images, top, cancellation);
});

app.MapPost("/classes/{name}", async (string name, HttpRequest request, CancellationToken cancellation) =>
{
    var images = (await Received(request, cancellation)).WithClasses(name);

    if (classifier.ClassNames.Contains(name))
        await classifier.AddImagesAsync(images, cancellationToken: cancellation);
    else
        await classifier.LearnAsync(images, cancellationToken: cancellation);

    classifier.Save(folder);
    return classifier.ClassNames;
});

await app.RunAsync();
return 0;

// The files of a form, or the body as one image.
static async Task<ImageCollection> Received(HttpRequest request, CancellationToken cancellation)
{
    if (!request.HasFormContentType)
        return await Images.FromStreamAsync(request.Body, cancellation);

    var files = new List<byte[]>();
    foreach (var file in (await request.ReadFormAsync(cancellation)).Files)
    {
        using var bytes = new MemoryStream();
        await file.CopyToAsync(bytes, cancellation);
        files.Add(bytes.ToArray());
    }

    return Images.FromEncoded(files.ToArray());
}
