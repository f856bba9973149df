/// Heads with covariances against loops over images, and the algebra of their papers.
module LoRASub.Tests.HeadsTests

open LoRASub.Core
open LoRASub.Heads
open Expecto
open LoRASub.Tests.Check
open LoRASub.Tests.Generators
open TorchSharp

let private property name law = property "Heads" name law
let private float64 = torch.ScalarType.Float64

type Case =
    {
        [<Between(0, 9999)>]
        Seed: int
        [<Between(1, 4)>]
        Classes: int
        [<Between(1, 5)>]
        Width: int
        [<Between(1, 7)>]
        PerClass: int
    }

    member c.Images = c.Classes * c.PerClass

    /// Away from the origin, so that sums and scatter differ.
    member c.X =
        normalMatrix c.Seed c.Images c.Width
        |> Array2D.mapi (fun i j x -> x + 2.0 + float ((i % c.Classes + j) % 3))

    member c.Rows = order c.Seed c.Images |> Array.map (fun i -> i % c.Classes)
    member c.Test = normalMatrix (c.Seed + 1) 6 c.Width |> Array2D.map ((+) 2.0)

// the slow way: matrices of plain numbers

let private ofClass (c: Case) row =
    pick (Array.indexed c.Rows |> Array.filter (snd >> (=) row) |> Array.map fst) c.X

let private mean (x: float[,]) =
    Array.init (Array2D.length2 x) (fun j -> Array.average x[*, j])

let private less (m: float[]) (x: float[,]) =
    x |> Array2D.mapi (fun _ j v -> v - m[j])

let private gram (x: float[,]) =
    Oracles.multiply (Oracles.transpose x) x

let private scatterOf (x: float[,]) = gram (less (mean x) x)

let private sumOf (c: Case) (of': int -> float[,]) =
    List.init c.Classes of' |> List.reduce Oracles.add

let private shrink epsilon (m: float[,]) =
    let average = Oracles.trace m / float (Array2D.length1 m)

    let ridge = if average > 0.0 then epsilon * average else 1.0

    Oracles.add (Oracles.scale (1.0 - epsilon) m) (Oracles.scale ridge (Oracles.identity (Array2D.length1 m)))

let private mapSpectrum (f: float -> float) (m: float[,]) =
    let values, vectors = Oracles.eigen m

    vectors
    |> Array2D.mapi (fun _ j v -> v * f values[j])
    |> fun scaled -> Oracles.multiply scaled (Oracles.transpose vectors)

let private inverse = mapSpectrum (fun x -> 1.0 / x)

let private form (m: float[,]) (u: float[]) (v: float[]) =
    Array.sum (
        Array.init u.Length (fun i -> u[i] * Array.sum (Array.init v.Length (fun j -> m[i, j] * v[j])))
    )

let private minus = Array.map2 (-)

let private means (c: Case) =
    Array.init c.Classes (ofClass c >> mean)

let private pooled (c: Case) =
    Oracles.scale (1.0 / float c.Images) (sumOf c (ofClass c >> scatterOf))

let private scoresOf (c: Case) (score: int -> float[] -> float) =
    Array2D.init 6 c.Classes (fun i row -> score row c.Test[i, *])

// the heads

let private state (head: Head<'H>) (c: Case) =
    head.Zero (int64 c.Width) float64 device
    |> head.Grow c.Classes
    |> head.Observe (tensor c.X) (labelTensor c.Rows)

let private scores (head: Head<'H>) (c: Case) : float[,] =
    matrix ((head.Scores(state head c)).Score(tensor c.Test))

let private agree (expected: float[,]) (actual: float[,]) =
    closeTo 1e-7 "scores" (Seq.cast<float> expected) (Seq.cast<float> actual)

/// Scores less their mean over classes: what decides.
let private relative (scores: float[,]) =
    scores |> Array2D.mapi (fun i _ s -> s - Array.average scores[i, *])

let private law name (test: Case -> unit) =
    property name (fun (c: Case) -> Scope.run (fun () -> test c))

let private mapOf before map after residual : DriftMap =
    {
        Before = vector before
        Map = tensor map
        After = vector after
        Residual = tensor residual
    }

/// A drift x -> (x − m)P + n that is affine without a residual.
let private drift (c: Case) =
    let p =
        Oracles.add (Oracles.identity c.Width) (Oracles.scale 0.3 (normalMatrix (c.Seed + 5) c.Width c.Width))

    let before, after = normals (c.Seed + 6) c.Width, normals (c.Seed + 7) c.Width

    let move (x: float[,]) =
        Oracles.multiply (less before x) p |> Array2D.mapi (fun _ j v -> v + after[j])

    struct (mapOf before p after (Array2D.zeroCreate c.Width c.Width), move)

let private statistics =
    [
        law "the pooled scatter ≡ deviations from class means" (fun c ->
            let found = state (Discriminant.lda Shrinkage.Oas) c
            closeMatrix "scatter" (sumOf c (ofClass c >> scatterOf)) found.Scatter
            Expect.equal found.Images (int64 c.Images) "images")

        law "each class's scatter ≡ deviations from its mean" (fun c ->
            let found = state (ClassCovariance.mixed 0.5 0.1) c

            for row in 0 .. c.Classes - 1 do
                closeMatrix "scatter" (scatterOf (ofClass c row)) (found.Scatters.select (0L, int64 row)))

        testCase "a float32 scatter does not cancel far from the origin" (fun () ->
            Scope.run (fun () ->
                let x = normalMatrix 1 64 4
                let far = x |> Array2D.map (fun v -> v + 4096.0)
                let head = Discriminant.lda Shrinkage.Oas

                let found =
                    (0, head.Zero 4L torch.float32 device |> head.Grow 1)
                    |> List.unfold (fun (from, state) ->
                        if from = 64 then
                            None
                        else
                            let part = (tensor far[from .. from + 15, *]).``to`` torch.float32
                            let next = head.Observe part (labelTensor (Array.zeroCreate 16)) state
                            Some(next, (from + 16, next)))
                    |> List.last

                closeTo
                    0.05
                    "scatter"
                    (Seq.cast<float>(scatterOf x))
                    (numbers (found.Scatter.``to`` float64))))

        law "statistics through an affine map ≡ statistics of the mapped images" (fun c ->
            let struct (map, move) = drift c
            let after = move c.X
            let lda, rda = Discriminant.lda Shrinkage.Oas, ClassCovariance.mixed 0.5 0.1

            let learn (head: Head<'H>) =
                head.Zero (int64 c.Width) float64 device
                |> head.Grow c.Classes
                |> head.Observe (tensor after) (labelTensor c.Rows)

            let expected, found = learn lda, PooledMoments.transport map (state lda c)
            closeTensors "sums" expected.Classes.Sums found.Classes.Sums
            closeTensors "scatter" expected.Scatter found.Scatter
            let expected, found = learn rda, ClassScatters.transport map (state rda c)
            closeTensors "sums" expected.Classes.Sums found.Classes.Sums
            closeTensors "scatters" expected.Scatters found.Scatters)

        law "the residual joins the scatter once per image" (fun c ->
            let residual = gram (normalMatrix c.Seed 3 c.Width)
            let zero = Array.zeroCreate c.Width
            let map = mapOf zero (Oracles.identity c.Width) zero residual

            let lda, rda =
                state (Discriminant.lda Shrinkage.Oas) c, state (ClassCovariance.mixed 0.5 0.1) c

            let pooled = (PooledMoments.transport map lda).Scatter.sub lda.Scatter
            let byClass = (ClassScatters.transport map rda).Scatters.sub rda.Scatters
            closeMatrix "pooled" (Oracles.scale (float c.Images) residual) pooled

            for row in 0 .. c.Classes - 1 do
                let count = c.Rows |> Array.filter ((=) row) |> Array.length |> float
                closeMatrix "of a class" (Oracles.scale count residual) (byClass.select (0L, int64 row)))

        law "a scatter is written as its triangle and read whole" (fun c ->
            let found = state (Discriminant.lda Shrinkage.Oas) c
            let written = Tree.write PooledMoments.tree found |> Map.ofList
            let d = int64 c.Width
            Expect.equal written["scatter"].shape [| d * (d + 1L) / 2L |] "triangle"

            let read =
                Tree.read PooledMoments.tree "the file" (written |> Map.map (fun _ t -> t.clone ()))
            // both triangles, whichever the products left
            let triangle = found.Scatter.tril ()
            identical "scatter" (triangle.add (found.Scatter.tril(-1L).t())) read.Scatter)
    ]

let private discriminants =
    let score epsilon cosine (c: Case) =
        let lambda = inverse (shrink epsilon (pooled c))
        let means = means c
        let centre = mean (array2D means)

        scoresOf c (fun row x ->
            let apart = minus means[row] centre
            let along = form lambda apart (minus x centre)
            let square = form lambda apart apart

            if not cosine then along - square / 2.0
            elif square < 1e-20 then 0.0
            else along / sqrt square)

    [
        law "lda ≡ the loops" (fun c ->
            agree (score 0.1 false c) (scores (Discriminant.lda (Shrinkage.Fixed 0.1)) c))

        law "cosine-lda ≡ the loops" (fun c ->
            agree (score 0.1 true c) (scores (Discriminant.cosine (Shrinkage.Fixed 0.1)) c))

        law "shrinkage by images is k of n + k" (fun c ->
            let epsilon = 7.0 / float (c.Images + 7)
            agree (score epsilon false c) (scores (Discriminant.lda (Shrinkage.Images 7)) c)
            agree (score epsilon true c) (scores (Discriminant.cosine (Shrinkage.Images 7)) c))

        law "shrinkage by the ratio of images to columns" (fun c ->
            let epsilon = 1.0 / (1.0 + (4.0 * float c.Images / float c.Width) ** 1.5)
            agree (score epsilon false c) (scores (Discriminant.lda Shrinkage.Ratio) c)
            agree (score epsilon true c) (scores (Discriminant.cosine Shrinkage.Ratio) c))

        law "the support of cosine-lda is the best score of lda" (fun c ->
            let support (head: Head<PooledMoments>) =
                let scorer = head.Scores(state head c)
                numbers (scorer.Support(scorer.Score(tensor c.Test)))

            closeTo
                1e-7
                "support"
                (support (Discriminant.lda (Shrinkage.Fixed 0.1)))
                (support (Discriminant.cosine (Shrinkage.Fixed 0.1))))

        law "fully shrunk, lda is the nearest mean by distance" (fun c ->
            let means = means c
            let spread = Oracles.trace (pooled c) / float c.Width
            let unit = if spread > 0.0 then spread else 1.0

            let expected =
                scoresOf c (fun row x ->
                    let apart = minus x means[row]
                    -0.5 * Array.sumBy (fun v -> v * v) apart / unit)

            let found = scores (Discriminant.lda (Shrinkage.Fixed 1.0)) c
            agree (relative expected) (relative found))

        law "hardly shrunk, lda does not see invertible maps" (fun c ->
            // a covariance of full rank
            let c = { c with PerClass = 7 }

            let map =
                Oracles.add (Oracles.identity c.Width) (orthogonal (c.Seed + 3) c.Width |> Oracles.scale 0.5)

            let head = Discriminant.lda (Shrinkage.Fixed 1e-12)

            let mapped =
                head.Zero (int64 c.Width) float64 device
                |> head.Grow c.Classes
                |> head.Observe (tensor (Oracles.multiply c.X map)) (labelTensor c.Rows)

            let found =
                matrix ((head.Scores mapped).Score(tensor (Oracles.multiply c.Test map)))

            let expected = scores head c
            let size = expected |> Seq.cast<float> |> Seq.map abs |> Seq.fold max 1.0
            agree (Oracles.scale (1.0 / size) expected) (Oracles.scale (1.0 / size) found))

        law "the shrinkage of oas ≡ its formula, and shrinks all the way without a direction" (fun c ->
            let covariance = pooled c
            let d, n = float c.Width, float c.Images
            let trace, squares = Oracles.trace covariance, Oracles.trace (gram covariance)
            let top = (1.0 - 2.0 / d) * squares + trace * trace
            let bottom = (n + 1.0 - 2.0 / d) * (squares - trace * trace / d)
            let expected = if bottom <= top then 1.0 else top / bottom
            let found = Symmetric.oas (int64 c.Images) (tensor covariance)
            closeTo 1e-9 "ε" [ expected ] [ found ]
            closeTo 1e-9 "round" [ 1.0 ] [ Symmetric.oas 50L (tensor (Oracles.identity 4)) ])
    ]

let private others =
    [
        law "ridge ≡ its dual (K + λ)⁻¹" (fun c ->
            let k = Oracles.multiply c.X (Oracles.transpose c.X)
            let lambda = 0.05 * Oracles.trace (gram c.X) / float c.Width

            let solved =
                inverse (Oracles.add k (Oracles.scale lambda (Oracles.identity c.Images)))

            let hot =
                Array2D.init c.Images c.Classes (fun i row -> if c.Rows[i] = row then 1.0 else 0.0)

            let test = Oracles.multiply c.Test (Oracles.transpose c.X)
            let expected = Oracles.multiply test (Oracles.multiply solved hot)
            agree expected (scores (Ridge.head 0.05) c))

        law "ridge regularised without end scores by the class sums" (fun c ->
            let lambda = 1e12
            let mean = Oracles.trace (gram c.X) / float c.Width

            let sumsOf (x: float[,]) =
                Array.init c.Width (fun j -> Array.sum x[*, j])

            let sums = Array.init c.Classes (ofClass c >> sumsOf)

            let expected =
                scoresOf c (fun row x -> Array.fold2 (fun sum a b -> sum + a * b) 0.0 x sums[row])

            agree expected (Oracles.scale (lambda * mean) (scores (Ridge.head lambda) c)))

        law "a head over random features ≡ that head on relu(xᵀR)" (fun c ->
            let inner = Ridge.head 0.1
            let head = RandomProjection.over RandomProjection.ridgeInfo 9 inner
            let learned = state head c

            let features (x: float[,]) =
                (tensor x).mm(learned.Projection).relu()

            let expected =
                inner.Zero 9L float64 device
                |> inner.Grow c.Classes
                |> inner.Observe (features c.X) (labelTensor c.Rows)

            agree
                (matrix ((inner.Scores expected).Score(features c.Test)))
                (matrix ((head.Scores learned).Score(tensor c.Test))))

        testCase "the projection is standard normal and the same in both precisions" (fun () ->
            Scope.run (fun () ->
                let head = RandomProjection.over RandomProjection.ridgeInfo 200 (Ridge.head 0.1)
                let wide, narrow = head.Zero 50L float64 device, head.Zero 50L torch.float32 device
                identical "numbers" wide.Projection (narrow.Projection.``to`` float64)
                between "mean" -0.05 0.05 (wide.Projection.mean().item<float>())
                between "deviation" 0.97 1.03 (wide.Projection.std().item<float>())
                let other = head.Zero 51L float64 device
                let part = other.Projection.narrow (0L, 0L, 50L)
                Expect.isFalse (part.eq(wide.Projection).all().item<bool>()) "of another width"))

        law "rda ≡ the loops" (fun c ->
            let beta, epsilon = 0.4, 0.1
            let pooled, means = pooled c, means c

            let covariances =
                Array.init c.Classes (fun row ->
                    let mine = ofClass c row
                    let own = Oracles.scale (1.0 / float (Array2D.length1 mine)) (scatterOf mine)

                    shrink
                        epsilon
                        (Oracles.add (Oracles.scale beta own) (Oracles.scale (1.0 - beta) pooled)))

            let expected =
                scoresOf c (fun row x ->
                    let apart = minus x means[row]
                    let volume = fst (Oracles.eigen covariances[row]) |> Array.sumBy log
                    -0.5 * (form (inverse covariances[row]) apart apart + volume))

            agree expected (scores (ClassCovariance.mixed beta epsilon) c))

        law "rda without class covariances decides as lda" (fun c ->
            let found = scores (ClassCovariance.mixed 0.0 0.1) c
            let expected = scores (Discriminant.lda (Shrinkage.Fixed 0.1)) c
            agree (relative expected) (relative found))

        testCase "rda gives a class of one image the shared covariance" (fun () ->
            Scope.run (fun () ->
                let head = ClassCovariance.mixed 1.0 0.1
                let x = normalMatrix 5 9 3
                // the first class has one image
                let rows = [| 0; 1; 1; 1; 1; 2; 2; 2; 2 |]

                let learned =
                    head.Zero 3L float64 device
                    |> head.Grow 3
                    |> head.Observe (tensor x) (labelTensor rows)

                let scatter from =
                    scatterOf (pick [| from .. from + 3 |] x)

                let shared =
                    shrink 0.1 (Oracles.scale (1.0 / 9.0) (Oracles.add (scatter 1) (scatter 5)))

                let test = normals 6 3
                let apart = minus test x[0, *]
                let volume = fst (Oracles.eigen shared) |> Array.sumBy log
                let expected = -0.5 * (form (inverse shared) apart apart + volume)
                let found = matrix ((head.Scores learned).Score(tensor (array2D [ test ])))
                closeTo 1e-7 "score" [ expected ] [ found[0, 0] ]))

        testCase "equal classes score 0 under cosine-lda, whatever their sums round to" (fun () ->
            Scope.run (fun () ->
                let head = Discriminant.cosine (Shrinkage.Fixed 0.01)
                let x = normalMatrix 7 6 4 |> Array2D.map ((+) 3.0)
                let both = array2D [ yield! rows x; yield! Array.rev (rows x) ]
                let labels = [| yield! Array.create 6 0; yield! Array.create 6 1 |]

                let learned =
                    head.Zero 4L torch.float32 device
                    |> head.Grow 2
                    |> head.Observe ((tensor both).``to`` torch.float32) (labelTensor labels)

                let found = (head.Scores learned).Score((tensor x).``to`` torch.float32)
                Expect.all (numbers (found.``to`` float64)) ((=) 0.0) "scores"))

        law "fecam ≡ the loops" (fun c ->
            let unit = unitRows c.X

            let rowsOf row =
                Array.indexed c.Rows |> Array.filter (snd >> (=) row) |> Array.map fst

            let parts =
                Array.init c.Classes (fun row ->
                    let mine = pick (rowsOf row) unit
                    let own = Oracles.scale (1.0 / float (Array2D.length1 mine)) (scatterOf mine)
                    let shrunk = shrink 0.5 own
                    mean mine, shrunk |> Array2D.mapi (fun i j v -> v / sqrt (shrunk[i, i] * shrunk[j, j])))

            let expected =
                let test = unitRows c.Test

                Array2D.init 6 c.Classes (fun i row ->
                    let centre, correlation = parts[row]
                    let apart = minus test[i, *] centre
                    -0.5 * form (inverse correlation) apart apart)

            agree expected (scores ClassCovariance.fecam c))
    ]

let private names =
    [
        testCase "parameters follow the name" (fun () ->
            for name in [ "cosine-lda"; "cosine-lda:0.003"; "lda:oas"; "rp-ridge:64:0.5"; "rda:0.5" ] do
                Expect.equal (Heads.find name).Info.Name name "kept, so that a saved learner finds it again")

        testCase "parameters reach the head" (fun () ->
            Scope.run (fun () ->
                let c =
                    {
                        Seed = 3
                        Classes = 3
                        Width = 4
                        PerClass = 6
                    }

                let scores name =
                    let head = Heads.find name

                    let learned =
                        head.Zero 4L float64 device
                        |> head.Grow 3
                        |> head.Observe (tensor c.X) (labelTensor c.Rows)

                    matrix ((head.Scores learned).Score(tensor c.Test))

                for name, same, other in
                    [
                        "lda", "lda:0.01", "lda:0.5"
                        "cosine-lda", "cosine-lda:0.01", "cosine-lda:oas"
                        $"cosine-lda:{c.Images}-images", "cosine-lda:0.5", "cosine-lda:300-images"
                        "ridge", "ridge:0.001", "ridge:0.5"
                        "rda", "rda:0.2:0.03", "rda:0.2:0.3"
                        "rp-ridge:8", "rp-ridge:8:0.1", "rp-ridge:9:0.1"
                        "rp-cosine-lda:8", "rp-cosine-lda:8:0.1", "rp-cosine-lda:8:0.2"
                    ] do
                    agree (scores name) (scores same)
                    Expect.notEqual (scores name) (scores other) other))

        for name, words in
            [
                "cosine-lad", [ "did you mean cosine-lda" ]
                "cosine-lda:2", [ "(0, 1]"; "ratio"; "oas"; "300-images"; "'2'" ]
                "cosine-lda:0-images", [ "300-images"; "'0-images'" ]
                "cosine-lda:1.5-images", [ "300-images" ]
                "cosine-lda:300-image", [ "300-images" ]
                "ridge:300-images", [ "(0, 1]"; "'300-images'" ]
                "cosine-lda:x", [ "(0, 1]"; "'x'" ]
                "cosine-lda:", [ "(0, 1]"; "''" ]
                "lda:0", [ "(0, 1]" ]
                "lda:nan", [ "(0, 1]" ]
                "rp-ridge:0", [ "1 to 20000" ]
                "rp-ridge:20001", [ "1 to 20000" ]
                "rp-ridge:8:0.1:3", [ "rp-ridge:FEATURES:LAMBDA" ]
                "nearest-mean:1", [ "must be nearest-mean" ]
            ] do
            rejects $"head {name}" words (fun () -> Heads.find name |> ignore)

        rejects "a covariance per class on a wide embedding" [ "at most 1024"; "1025" ] (fun () ->
            ClassCovariance.fecam.Zero 1025L float64 device |> ignore)

        rejects "a triangle of another width" [ "scatter"; "6" ] (fun () ->
            Scope.run (fun () ->
                let state = (Discriminant.lda Shrinkage.Oas).Zero 3L float64 device
                let written = Tree.write PooledMoments.tree state |> Map.ofList
                let cut = written |> Map.add "scatter" (torch.zeros [| 5L |])
                Tree.read PooledMoments.tree "the file" cut |> ignore))
    ]

[<Tests>]
let tests = testList "Heads" (statistics @ discriminants @ others @ names)
