/// What Pillow 9.4 makes of small images, for tests that compare with it.
///
/// `pattern h w` is the image whose channel i has (37x + 91y + 13·(xy mod 17) + 5·(x²y mod 29) + 53i) mod 256 at (x, y);
/// `smooth h w` has the channels 255x / (w - 1), 255y / (h - 1) and (9x + 5y) mod 256, rounded down. The bytes are RGB,
/// row by row, in base64.
module LoRASub.Tests.PillowFixtures

open System
open LoRASub.Data

let bytes (base64: string) : byte[] =
    base64.Split([| ' '; '\n' |], StringSplitOptions.RemoveEmptyEntries)
    |> String.concat ""
    |> Convert.FromBase64String

let private picture height width (channels: (int -> int -> int)[]) : Picture =
    {
        Height = height
        Width = width
        Pixels =
            [|
                for y in 0 .. height - 1 do
                    for x in 0 .. width - 1 do
                        for channel in channels do
                            byte (channel x y)
            |]
    }

let pattern (height: int) (width: int) : Picture =
    let channel i x y =
        (x * 37 + y * 91 + (x * y) % 17 * 13 + (x * x * y) % 29 * 5 + i * 53) % 256

    picture height width (Array.init 3 channel)

let smooth (height: int) (width: int) : Picture =
    picture
        height
        width
        [|
            fun x _ -> x * 255 / max 1 (width - 1)
            fun _ y -> y * 255 / max 1 (height - 1)
            fun x y -> (x * 9 + y * 5) % 256
        |]

/// Height and width of a pattern, box, height and width of the result, and what `Image.crop(box).resize(size,
/// BILINEAR)` gives.
let crops: (int * int * CropBox * int * int * string) list =
    let box top left height width : CropBox =
        {
            Top = top
            Left = left
            Height = height
            Width = width
        }

    [
        13,
        17,
        box 0 0 13 17,
        6,
        8,
        """
anead3KeopB2WmZlbYu1j7NdeYGKgXZ0jXSKoXh3nIZ9hH2JjV99l6Z4hqmRk3Fzi419i3GDeXSHWnuRXl9+aYKhb52tma12
aHyTTmSKXnqUcY1xWIaBfo6OUXanp3h3knOSjqNXiH2PcmCKZHOFol1WR3p4dItpi2WHcoqBfWpjfHp5YXqYh4x3ZWhqbnRp"""
        24,
        31,
        box 2 3 19 20,
        7,
        7,
        """
oYptg3aSkHBxhqaUhoZxVYZtWYBsa2+DX4SBXXeHZ46ujJZ9ZXR9h3lnfoKKcnGIdW98a3qEdH54aIt+bm1fcnt2dHWAcHSF
eoJgcIVtbp+gc4NidGiGeGVwoHlWwmFAoHZgZIumcoN9jot5h497lINdqEhphnd5U4KTbpCLWoR0fKuXfqhqgpeNiYiFf4Np
mH1v"""
        7,
        5,
        box 0 0 7 5,
        11,
        9,
        """
ADVqDEF2IVaLNWqfSn+0X5TJc6jdiL3ylMn+KV6TOG2iUoe8bG6jiEl+ZmecUIW6cqfchbrvY5i2dqPJlrbosHClyBRJcjNo
NlaJYY60eq/NndJNtKtj2mmKtWOYfGyhjz5zny5Pp55XrOFceq9BlJNbwWWIr2CVjmaboVKHsFRts7I8teofEUZ7L2SZYpfM
omWa5RpPq26jgLXOlMlToNUKS4C1bWyhpkp/pliNmXGmk596lrlTu4RE0mQ8hbqpk4qRrDtppFKHk4O4iqFukKg4y1VM7yRZ
v/RAm8hiX3+bl1eM6zdslWOLYnubukVz8CVabaJjdKlif7RgmZqCtnesa22iO2OYb1eMj1CFIleMUodno9gpnNF4gLXqSH2y
H1SJMmecPnOo"""
        20,
        20,
        box 1 0 19 7,
        4,
        5,
        """
e5CGo2WQhnV5oH1sdYqfhnmScnuCdH1xcX2RcmuTkXx5g3p8aoiDe3KCkUZihoyCi3eUbIx2fnl8qH5i"""
        9,
        9,
        box 4 4 1 1,
        5,
        5,
        """
7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY7iNY
7iNY"""
        12,
        40,
        box 0 3 12 33,
        12,
        4,
        """
eIR/coRxd4h2gY1wa4SHhJKQiYpenIpZnoxzhopjf292a2GWh4KLdIWCcFVxn4VonnN7eY+AgYlhlnhwS2ide5t8lGt3hXNq
WI2EaG6aeG1zgYOAWY53f4mIgnhuVneofm6jcXqFV4aAg2F9i1xxYW9ldpRzc3ePbJBzc5BudouDomhzZ3yCeI5veahpgoVr"""
        6,
        6,
        box 0 0 6 6,
        6,
        6,
        """
ADVqJVqPSn+0b6TZlMn+ue4jW5DFksf80wg9HlOIc6jd0gc8tusg/zRpXJHGzQI3wfYrWo/EEUZ7bKHW5RpPfLHmoNUK4hdM
bKHW2Q5DbqPYms8E7iNYjcL3x/wxRnuw9yxhSX6z8CVaFUp/"""
        30,
        3,
        box 5 0 20 3,
        5,
        9,
        """
fISLfISLe4iKeo6JeZKHcYWGaniFY2qEY2qElHGOlHGOlG6LlW2KlmuIind8foNwc5Blc5BlkIVqkIVqjIR2iYODhoOQhXqR
hHGTgmeUgmeUbJl+bJl+foaDkXSJpGGOkW6BfntzbIlmbIlmd2yYd2yYcnONbnuCaYJ3b5JldaFTfLFBfLFB"""
    ]

/// Height and width of a pattern, shorter side, size, and what Pillow gives for torchvision's `Resize(side)` and
/// `CenterCrop(size)` written out in its operations.
let centres: (int * int * int * int * string) list =
    [
        19,
        26,
        9,
        7,
        """
mYaBhnqFj2d8j6aEjaV/gXR8VIdsenWKXHORZGB8bYWndZ+ekLB5VXxsW32Qa5NvVoaBdJOdW3Klo4h3YICOjXiTb16KbWiA
nmVYRnl5bYVwWImMcmpsd4F/Y3iVho1pYmtte41mdKmse1d0XmmMjnFiuoJJtHM5kpp2W42qoWeBh41ftYxHsTtMzyhTll9s
UYGg"""
        26,
        19,
        9,
        7,
        """
i3GDenOGWnyRXl5+aYCebZyxk6pzTmSKXXmUcYxyWIeBgI2MT3eonnl5jqJXiH6Oc1+KYnaGpVlVRnp4cIxpdIaBdGpreHqA
ZHSTiYpyc3Vhc4FqX3KOg1J3ZWV8k3dbvHdIwmM4qYJcioqMlnOKh41wsKBOlEBRzy1aj15waYJ1hZhccJKcbpOKhIRZlYWs
epN4"""
        11,
        11,
        8,
        8,
        """
K2CVYWqfZIi9nbOmwnI1LUdwPnOoc6jdoKqBrmSZhkprl5t/jpaAcopWfmmeoHitXnaGql2SnoiEtJNHgnqtgoGTnjhtbnKM
kZaJolmOlI5itFV/U4S5XG+kmzZrf4RTb6RmmJmJVGabdHBsYpePX5RkJluLQHWncYKqMmeKRlmOQ3acXXKSfapfVYp0T4SF
nE6DhIJ4nXtLg4a3pViNhlqPNWqfgWWafZfMd4aPmc40nrR7WGugWluQYJV5YV5b"""
        10,
        23,
        8,
        5,
        """
wUxjXmCVo5lliL2JdKnCqztwqEpapJFFjXqXgLXQQ2qOOV6PQG2WXIi9YpfKToNpSX5qaJ2mhrvFM2idPnODd6yYaWFqm5Oc
QXar"""
        23,
        10,
        9,
        6,
        """
XFJSqWl/c47DrFeMnG6gJk+DjsMylstHpIOOdWOYjEyBRlSJfLFrgrddXJF/ZVeMbn9nYJWwbKGJY12Sd2RSr0xHlnlhWI2n
h0d8Y3arbnmEU1dqYnyxTIG2VWaaKF2Pe0p/tB5TUER2K2CQ"""
        5,
        8,
        6,
        9,
        """
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAADVqH1SJQHWqYZbLgrfsotepw7EtuRlOAzhtRHmub6TZoUuAY06DV4zBm4Wh
xl8wnJwxF0yBkMVlx4CcoF+UiDhtkn1nmaR9jHSLhrt+baJCcaZGtG2JoWCVo1OIr5pPp7JKiXGmcqfDg7hYKF2SeHestU6D
noiWnLFmvoFBrFaLWI3CWY7DbKHWxydcjHqvib5WxHkuyGGWc6jdO3ClbKHWAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"""
        30,
        7,
        4,
        7,
        """
AAAAjXKhjJpRmaZ3gWaXAAAAAAAAAAAAo1aEgZt4ZHtyhVJrAAAAAAAAAAAAg5pXcmaAbGuPdVBgAAAAAAAAAAAAinyQZoCT
c36WwCtVAAAAAAAAAAAAkIh8oXyNh4eWnXlpAAAAAAAAAAAAiIKUYnyAeI9SnbFeAAAAAAAAAAAAdXJ3XmxfQ2uGhbqfAAAA
AAAA"""
        8,
        8,
        16,
        6,
        """
jWKXqj90uV5Tub4zqs9EjJGGtkuAnXKnlpuQosc8r7Qpu2BVt1yBlJmekLWKqK1Cuo80x1xhjpOYkbZbpao/yW5DzWJnsIWq
jpOYia5ToJU61ElOz0R5j4S5t1yBfIGGgnd8y0BlwDVqYleM"""
    ]

/// What it is, extension, the file, and what Pillow's `convert("RGB")` gives for it; each is 9 pixels wide and 6 high.
let files: (string * string * string * string) list =
    [
        "CMYK JPEG with Adobe's marker, inverted",
        "jpg",
        """
/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAGBAUGBQQGBgUGBwcGCAoQCgoJCQoUDg8MEBcUGBgXFBYWGh0lHxobIxwWFiAsICMm
JykqKRkfLTAtKDAlKCko/8AAFAgABgAJBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//E
ALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2
Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrC
w8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASwAAPwDI/Zu/5dfwrqv+GbdE9YP++T/h
XifhaxT5OlfVNfYFH/DNuiesH/fJ/wAK7b7CntRX/9k=""",
        """
AAAAHgAIQAASXgAbfwAjngAsvwA33gA+/wBIADIFHjINQDIXXjIgfzIonjIxvzI83jJD/zJNAGYLHmYTQGYdXmYmf2YunmY3
v2ZC3mZJ/2ZTAJsQHpsXQJsiXpsrf5sznps8v5tG3ptO/5tXAMoUHsocQMomXsowf8o3nspAv8pL3spT/8pcAP8ZHv8gQP8r
Xv80f/88nv9Fv/9P3v9X//9g"""
        "CMYK JPEG without the marker",
        "jpg",
        """
/9j/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/
wAAUCAAGAAkEQxEATREAWREASxEA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQA
AAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW
V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ
2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oADgRDAE0AWQBLAAA/AMj9m7/l1/Cuq/4Zt0T1g/75P+FeJ+FrFPk6V9U19gUf8M26
J6wf98n/AArtvsKe1Ff/2Q==""",
        """
AAAAHgAIQAASXgAbfwAjngAsvwA33gA+/wBIADIFHjINQDIXXjIgfzIonjIxvzI83jJD/zJNAGYLHmYTQGYdXmYmf2YunmY3
v2ZC3mZJ/2ZTAJsQHpsXQJsiXpsrf5sznps8v5tG3ptO/5tXAMoUHsocQMomXsowf8o3nspAv8pL3spT/8pcAP8ZHv8gQP8r
Xv80f/88nv9Fv/9P3v9X//9g"""
        "progressive JPEG with colour at half size and EXIF orientation 6",
        "jpeg",
        """
/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAAoHBwgHBgoICAgL
CgoLDhgQDg0NDh0VFhEYIx8lJCIfIiEmKzcvJik0KSEiMEExNDk7Pj4+JS5ESUM8SDc9Pjv/2wBDAQoLCw4NDhwQEBw7KCIo
Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozv/wgARCAAGAAkDASIAAhEBAxEB/8QA
FgABAQEAAAAAAAAAAAAAAAAAAAEF/8QAFQEBAQAAAAAAAAAAAAAAAAAAAgX/2gAMAwEAAhADEAAAAbpkdf/EABgQAAIDAAAA
AAAAAAAAAAAAAAACAwQU/9oACAEBAAEFAoaCGBD/xAAYEQACAwAAAAAAAAAAAAAAAAAABAMTMf/aAAgBAwEBPwFFiWrT/8QA
GBEAAgMAAAAAAAAAAAAAAAAAAAECA1H/2gAIAQIBAT8Bds9P/8QAFBABAAAAAAAAAAAAAAAAAAAAEP/aAAgBAQAGPwI//8QA
FxABAAMAAAAAAAAAAAAAAAAAACExcf/aAAgBAQABPyGNTJ//2gAMAwEAAgADAAAAEP8A/8QAFhEAAwAAAAAAAAAAAAAAAAAA
ABEh/9oACAEDAQE/EEFn/8QAFREBAQAAAAAAAAAAAAAAAAAAABH/2gAIAQIBAT8QpP/EABcQAAMBAAAAAAAAAAAAAAAAAABB
kWH/2gAIAQEAAT8QcSaSf//Z""",
        """
AAUAEQgAMAsDUQsLdQcSmAYZuQgk0Qgq6Q40Di4FITIOPzYZXzUfgzEmpjAwxzI44DE+9zhKCmEQHWYXO2khXGgqf2MxomM4
w2VD3WVK82tTB5EXGZUdN5gnWZgwfJQ2n5M/wpRJ2ZRP8JtaEMYjIcsqP840Yc49hMpDpslLycpT4stb+tFnHOowLe83TfFD
bPFKkexRtOtZ1e1j7u5q//Nz"""
        "grey JPEG",
        "jpg",
        """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwg
IyYnKSopGR8tMC0oMCUoKSj/wAALCAAGAAkBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgED
AwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RF
RkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJ
ytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/AJvB/wAKNP8Ak5j/ACrv/wDhVGn+sf5V/9k=""",
        """
AgICCgoKFhYWISEhKysrNjY2QUFBSkpKVVVVHx8fJycnMzMzPj4+SEhIU1NTX19fZ2dncnJyPj4+R0dHU1NTXl5eZ2dncnJy
fn5+hoaGkpKSXFxcZGRkcHBwe3t7hISEj4+Pm5ubpKSkr6+vfn5+hoaGkpKSnZ2dp6ensbGxvb29xsbG0dHRl5eXn5+fq6ur
tra2v7+/ysrK1tbW39/f6urq"""
        "palette PNG with a transparent colour",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGBAMAAADj6an2AAAAFVBMVEW/5k2/mUUv5iQvmR1/Zi6/GjkvGhCP8sylAAAAA3RS
TlP//wDXyg1BAAAAJElEQVR4nGNISwsNDWBIS3MFksYmLoICDMbGjkBSSYkBCMAkAIqXBZk35yroAAAAAElFTkSuQmCC""",
        """
LxoQLxoQLxoQLxoQvxo5vxo5vxo5vxo5vxo5LxoQLxoQLxoQLxoQf2Yuvxo5vxo5vxo5vxo5L5kdL5kdL5kdf2Yuf2Yuf2Yu
v5lFv5lFv5lFL5kdL5kdL5kdL5kdf2Yuv5lFv5lFv5lFv5lFL+YkL+YkL+YkL+Ykv+ZNv+ZNv+ZNv+ZNv+ZNL+YkL+YkL+Yk
L+Ykv+ZNv+ZNv+ZNv+ZNv+ZN"""
        "one-bit PNG",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGAQAAAAA5vIloAAAAGklEQVR4nGNgaGDgYmDx1mYIZWAM12TKYAAAE5ACRVImKzUA
AAAASUVORK5CYII=""",
        """
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA////AAAAAAAAAAAAAAAA////AAAA////AAAAAAAAAAAA////AAAA////AAAA////
AAAA////////AAAA////AAAA////AAAA////AAAA////AAAAAAAA////AAAA////AAAA////////////////////AAAA////
////////////////////////"""
        "RGB PNG with alpha",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGCAYAAAARx7TFAAAAIUlEQVR4nGNkYGBgkGfgZFXAg1kYjFl1GRhYWfHhwagIAI13
BQ6xcVoIAAAAAElFTkSuQmCC""",
        """
AAAAHwAJPwASXwAbfwAknwAtvwA23wA//wBIADMFHzMOPzMXXzMgfzMpnzMyvzM73zNE/zNNAGYKH2YTP2YcX2Ylf2Yun2Y3
v2ZA32ZJ/2ZSAJkPH5kYP5khX5kqf5kzn5k8v5lF35lO/5lXAMwUH8wdP8wmX8wvf8w4n8xBv8xK38xT/8xcAP8ZH/8iP/8r
X/80f/89n/9Gv/9P3/9Y//9h"""
        "grey PNG with alpha",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGCAQAAAC7znxOAAAAKklEQVR4nGNkYOBi5WblYuWGklysjPK6XCgC3Kwscrroqlhw
qkIIYFUFAPk+BHVhEXngAAAAAElFTkSuQmCC""",
        """
AAAACgoKFRUVHx8fKioqNTU1Pz8/SkpKVFRUHx8fKSkpMzMzPj4+SUlJU1NTXl5eaGhoc3NzPT09R0dHUlJSXFxcZ2dncnJy
fHx8h4eHkZGRXFxcZmZmcHBwe3t7hoaGkJCQm5ubpaWlsLCwenp6hISEj4+PmpqapKSkr6+vubm5xMTEzs7OmZmZo6Ojra2t
uLi4w8PDzc3N2NjY4uLi7e3t"""
        "16-bit RGB PNG",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGEAIAAADONf/RAAABVUlEQVR42gFKAbX+AABqAJgA+R+DALgJyD8AABUS/V+TAMob
a3/5AKkkip+VAHctpr/gAJQ2rN9dAKc/jv/4ABpIUQAA2jOWBUIfAjO/Djw/gTOzF1pfRTNoIG5/YTOdKWqfmDP7Mj6/BzP4
O6vfITN7RE//sDMlTRQAAF5mMQqVH39mzhP0Pxxmdxw2XwBmwCXpfxJmdC6/n6VmuDe4v8dmpUD9365mIUlx/wFmVVJ1AAB3
mcoP6x98meQYYz/bmZAh/19QmaAqkH/ymRIzS5+3mWA837+NmaVFnt8wmb1OIf80mfFX/AAA8swCFJwfJMxaHeg/rMywJjtf
ysy2L/B/5MxbOPGfFcxxQTi/aMwnSh3foMywUwn/IczvXPcAALz/2Bk3Hwv/1CKKP3D/0CtMX0T/LDQsf/v/Ez2Qn3j/4kan
v7L/wU8j363/8lg0/wH/EmG/9AGUup9VHO4AAAAASUVORK5CYII=""",
        """
AAAAHwAJPwASXwAbfwAknwAtvwA23wA//wBIADMFHzMOPzMXXzMgfzMpnzMyvzM73zNE/zNNAGYKH2YTP2YcX2Ylf2Yun2Y3
v2ZA32ZJ/2ZSAJkPH5kYP5khX5kqf5kzn5k8v5lF35lO/5lXAMwUH8wdP8wmX8wvf8w4n8xBv8xK38xT/8xcAP8ZH/8iP/8r
X/80f/89n/9Gv/9P3/9Y//9h"""
        "16-bit RGB PNG with alpha",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGEAYAAABBV2iGAAABwUlEQVR42gG2AUn+AABqAJgA+QBqH4MAuAnIH4M/AAAVEv0/
AF+TAMoba1+Tf/kAqSSKf/mflQB3Laaflb/gAJQ2rL/g310Apz+O313/+AAaSFH/+AAA2jOWBUIA2h8CM78OPB8CP4Ezsxda
P4FfRTNoIG5fRX9hM50pan9hn5gz+zI+n5i/BzP4O6u/B98hM3tET98h/7AzJU0U/7AAAF5mMQqVAF4ff2bOE/Qffz8cZncc
Nj8cXwBmwCXpXwB/EmZ0Lr9/Ep+lZrg3uJ+lv8dmpUD9v8ffrmYhSXHfrv8BZlVSdf8BAAB3mcoP6wB3H3yZ5BhjH3w/25mQ
If8/219QmaAqkF9Qf/KZEjNLf/Kft5lgPN+ft7+NmaVFnr+N3zCZvU4h3zD/NJnxV/z/NAAA8swCFJwA8h8kzFod6B8kP6zM
sCY7P6xfysy2L/Bfyn/kzFs48X/knxXMcUE4nxW/aMwnSh2/aN+gzLBTCd+g/yHM71z3/yEAALz/2Bk3ALwfC//UIoofCz9w
/9ArTD9wX0T/LDQsX0R/+/8TPZB/+594/+JGp594v7L/wU8jv7Lfrf/yWDTfrf8B/xJhv/8BFOHJGqX52D0AAAAASUVORK5C
YII=""",
        """
AAAAHwAJPwASXwAbfwAknwAtvwA23wA//wBIADMFHzMOPzMXXzMgfzMpnzMyvzM73zNE/zNNAGYKH2YTP2YcX2Ylf2Yun2Y3
v2ZA32ZJ/2ZSAJkPH5kYP5khX5kqf5kzn5k8v5lF35lO/5lXAMwUH8wdP8wmX8wvf8w4n8xBv8xK38xT/8xcAP8ZH/8iP/8r
X/80f/89n/9Gv/9P3/9Y//9h"""
        "16-bit grey PNG: the high bytes, where Pillow clips",
        "png",
        """
iVBORw0KGgoAAAANSUhEUgAAAAkAAAAGEAAAAABkPDdaAAAAfUlEQVR42gFyAI3/AAD5CcgS/RtrJIotpjasP45IUQAFQg48
F1ogbilqMj47q0RPTRQACpUT9Bw2Jekuvze4QP1JcVJ1AA/rGGMh/yqQM0s830WeTiFX/AAUnB3oJjsv8DjxQThKHVMJXPcA
GTciiitMNCw9kEanTyNYNGG/rdonW0JxjI0AAAAASUVORK5CYII=""",
        """
AAAACQkJEhISGxsbJCQkLS0tNjY2Pz8/SEhIBQUFDg4OFxcXICAgKSkpMjIyOzs7RERETU1NCgoKExMTHBwcJSUlLi4uNzc3
QEBASUlJUlJSDw8PGBgYISEhKioqMzMzPDw8RUVFTk5OV1dXFBQUHR0dJiYmLy8vODg4QUFBSkpKU1NTXFxcGRkZIiIiKysr
NDQ0PT09RkZGT09PWFhYYWFh"""
        "lossy WebP",
        "webp",
        """
UklGRlYAAABXRUJQVlA4IEoAAABQAgCdASoJAAYAAkA4JbACdLoB+AACiviUKAAA/vfYSDxp7au+vbAzzbxuMxRY/+Qr9ALp
3NN+GH+Z1h/7yUbXr/SHCzvvrYAAAA==""",
        """
BQwAFg4AMQ4DTgwLeBIelg4lshAtyg406hNADi8AHTIGOTMRVi8YgTUqnjMyuTM60zFB8jZNEWcKIWsSPGsbWGcihW42oWs9
vW1G1WtN9m9ZDpMNHpUUOZgfVZQmgZo4nJY/uJhI0ZZP8ptbFsQYJccfQckpXcUwictDpcdKwMlU2sdZ+cxnLfAxPfI4WfNC
dfBJoPZcu/Nj1/Rr8PJy//h+"""
        "lossless WebP with alpha",
        "webp",
        """
UklGRjoAAABXRUJQVlA4TC0AAAAvCEABEJmM6H9s6h/R/wBhtlGd5m93ryMQCKQwk58EBWkbsLh7cjYBkM63818A""",
        """
AAAAHwAJPwASXwAbfwAknwAtvwA23wA//wBIADMFHzMOPzMXXzMgfzMpnzMyvzM73zNE/zNNAGYKH2YTP2YcX2Ylf2Yun2Y3
v2ZA32ZJ/2ZSAJkPH5kYP5khX5kqf5kzn5k8v5lF35lO/5lXAMwUH8wdP8wmX8wvf8w4n8xBv8xK38xT/8xcAP8ZH/8iP/8r
X/80f/89n/9Gv/9P3/9Y//9h"""
        "palette BMP",
        "bmp",
        """
Qk1+BAAAAAAAADYEAAAoAAAACQAAAAYAAAABAAgAAAAAAEgAAADEDgAAxA4AAAABAAAAAQAATea/AEWZvwAk5i8AHZkvAC5m
fwA5Gr8AEBovAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIC
AgIAAAAAAAAAAAICAgIAAAAAAAAAAAMDAwMEAQEBAQAAAAMDAwQEBAEBAQAAAAYGBgYEBQUFBQAAAAYGBgYFBQUFBQAAAA==""",
        """
LxoQLxoQLxoQLxoQvxo5vxo5vxo5vxo5vxo5LxoQLxoQLxoQLxoQf2Yuvxo5vxo5vxo5vxo5L5kdL5kdL5kdf2Yuf2Yuf2Yu
v5lFv5lFv5lFL5kdL5kdL5kdL5kdf2Yuv5lFv5lFv5lFv5lFL+YkL+YkL+YkL+Ykv+ZNv+ZNv+ZNv+ZNv+ZNL+YkL+YkL+Yk
L+Ykv+ZNv+ZNv+ZNv+ZNv+ZN"""
    ]
