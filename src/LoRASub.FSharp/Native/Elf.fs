namespace LoRASub.Native

open System
open System.IO
open System.Text

/// Two operations on shared objects for NativeBackend; the layout follows elf(5), 64-bit little-endian.
[<RequireQualifiedAccess>]
module internal Elf =

    let private magic = [| 0x7Fuy; 'E'B; 'L'B; 'F'B; 2uy; 1uy |]
    let private versionNeeds = 0x6ffffffeu // SHT_GNU_verneed
    let private weak = 2uy // VER_FLG_WEAK

    /// Marks the needed symbol versions in `names` as weak, in place, and returns those it found: the dynamic linker
    /// then accepts a library that lacks them.
    let weakenNeeds (names: Set<string>) (file: byte[]) : string list =
        if file.Length < 64 || file[..5] <> magic then
            invalidArg (nameof file) "not a little-endian 64-bit ELF file"

        let u16 at = int (BitConverter.ToUInt16(file, at))
        let u32 at = BitConverter.ToUInt32(file, at)
        let offset at = int (BitConverter.ToUInt64(file, at))

        let text at =
            Encoding.ASCII.GetString(file, at, Array.IndexOf(file, 0uy, at) - at)

        let section i = offset 0x28 + i * u16 0x3A

        /// A linked list: each entry ends with the distance to the next one, 0 at the end.
        let rec chain nextField at : int list =
            match int (u32 (at + nextField)) with
            | 0 -> [ at ]
            | distance -> at :: chain nextField (at + distance)

        [
            for i in 0 .. u16 0x3C - 1 do
                if u32 (section i + 4) = versionNeeds then
                    let strings = offset (section (int (u32 (section i + 40))) + 24)

                    for library in chain 12 (offset (section i + 24)) do
                        for version in chain 12 (library + int (u32 (library + 8))) do
                            let name = text (strings + int (u32 (version + 8)))

                            if names.Contains name then
                                file[version + 4] <- file[version + 4] ||| weak // the flags' low byte
                                name
        ]

    /// Whether the file has the length in its header: the linker crashes on a truncated shared object.
    let isWhole (path: string) : bool =
        use file = File.OpenRead path
        let header = Array.zeroCreate<byte> 64

        let length = file.ReadAtLeast(Span header, 64, throwOnEndOfStream = false)
        let sections = int64 (BitConverter.ToUInt64(header, 0x28))

        let each, count =
            BitConverter.ToUInt16(header, 0x3A), BitConverter.ToUInt16(header, 0x3C)
        // the linker itself explains a file that is not ELF
        let isOne = length = 64 && header[..5] = magic
        not isOne || file.Length >= sections + int64 each * int64 count

    /// An x86-64 shared object that holds nothing and is called `name`.
    let empty (name: string) : byte[] =
        let strings = Array.concat [ [| 0uy |]; Encoding.UTF8.GetBytes name; [| 0uy |] ]

        let programHeaders, symbols, hash, dynamic, stringTable =
            0x40, 0xE8, 0x100, 0x110, 0x180

        let size = uint64 (stringTable + strings.Length)
        use stream = new MemoryStream()
        use out = new BinaryWriter(stream)

        let u16s (values: int list) =
            values |> List.iter (uint16 >> out.Write)

        let u32s (values: int list) = values |> List.iter out.Write

        let u64s (values: int list) =
            values |> List.iter (uint64 >> out.Write)

        let programHeader (kind: int) (at: int) (length: uint64) (align: int) =
            u32s [ kind; 6 ] // readable and writable: the linker edits the dynamic section
            u64s [ at; at; at ]
            out.Write length
            out.Write length
            u64s [ align ]

        out.Write magic
        out.Write 1uy
        out.Write(Array.zeroCreate<byte> 9)
        u16s [ 3; 62 ] // a shared object for x86-64
        u32s [ 1 ]
        u64s [ 0; programHeaders; 0 ]
        u32s [ 0 ]
        u16s [ 64; 56; 3; 64; 0; 0 ]
        programHeader 1 0 size 0x1000 // PT_LOAD: the whole file
        programHeader 2 dynamic (uint64 (stringTable - dynamic)) 8 // PT_DYNAMIC
        programHeader 0x6474e551 0 0UL 16 // PT_GNU_STACK: without it the stack would become executable
        out.Write(Array.zeroCreate<byte> 24) // the null symbol
        u32s [ 1; 1; 0; 0 ] // a hash table of that symbol

        for tag, value in
            [
                14, 1 // DT_SONAME
                4, hash
                5, stringTable
                6, symbols
                10, strings.Length
                11, 24
                0, 0
            ] do
            u64s [ tag; value ]

        out.Write strings
        out.Flush()
        stream.ToArray()
