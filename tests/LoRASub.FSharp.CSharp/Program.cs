using System;
using LoRASub;
using TorchSharp;

NativeBackend.ensureLoaded();
using var ones = torch.ones(2, 3);
Console.WriteLine(ones.sum().item<float>() == 6f ? "ok" : "wrong sum");
