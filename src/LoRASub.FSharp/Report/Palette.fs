namespace LoRASub.Report

/// Colours that colour-blind people can distinguish; each has a contrast of at least 3:1 with its background.
[<RequireQualifiedAccess>]
module internal Palette =

    /// On white.
    let light =
        [|
            "#0067a5"
            "#c8500a"
            "#00805c"
            "#9a3d94"
            "#8a6a00"
            "#3b7fb8"
            "#5a5a5a"
        |]

    /// The same hues on near-black.
    let dark =
        [|
            "#5db4f0"
            "#ff8f4d"
            "#35c79b"
            "#e08fdb"
            "#e3c14a"
            "#9ec6ff"
            "#b4b4b4"
        |]

    /// The ramp from little to much on white, and its dark counterpart: one hue, monotone in lightness.
    let lightRamp = [| "#eef4fa"; "#b5d3ea"; "#6aa8d4"; "#2373ae"; "#08306b" |]
    let darkRamp = [| "#16202b"; "#1d4368"; "#2d73ad"; "#6cb0e6"; "#d3eaff" |]

    let private channels (colour: string) =
        [| for i in [ 1; 3; 5 ] -> System.Convert.ToInt32(colour.Substring(i, 2), 16) |]

    /// The colour at `at` (0 to 1) of a ramp of evenly spaced colours.
    let along (ramp: string[]) (at: float) : string =
        let place = (max 0.0 (min 1.0 at)) * float (ramp.Length - 1)
        let left = min (int place) (ramp.Length - 2)
        let share = place - float left

        let mixed =
            Array.map2
                (fun a b -> int (round (float a + share * float (b - a))))
                (channels ramp[left])
                (channels ramp[left + 1])

        $"#{mixed[0]:x2}{mixed[1]:x2}{mixed[2]:x2}"

    /// Relative luminance as WCAG 2 defines it.
    let luminance (colour: string) : float =
        let linear (channel: int) =
            let c = float channel / 255.0

            if c <= 0.04045 then
                c / 12.92
            else
                ((c + 0.055) / 1.055) ** 2.4

        let c = channels colour |> Array.map linear
        0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]

    /// Text on a colour: black or white, whichever has the higher contrast.
    let textOn (colour: string) : string =
        if luminance colour > 0.179 then "#000000" else "#ffffff"

    /// The colour of an ink; places in an order keep away from the background's end of the ramp.
    let ink (kinds: string[]) (ramp: string[]) (ink: Ink) : string =
        match ink with
        | Ink.Kind i -> kinds[i % kinds.Length]
        | Ink.Along at -> along ramp (0.4 + 0.6 * at)

    /// What the page's script needs of each theme.
    let themes =
        {|
            Light = {| Kinds = light; Ramp = lightRamp |}
            Dark = {| Kinds = dark; Ramp = darkRamp |}
        |}
