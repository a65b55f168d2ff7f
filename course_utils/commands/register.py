"""The command `register`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from course_utils.commands.settings import MODEL, Device, Settings, Smoothness
from course_utils.commands.settings import device as device_of
from course_utils.data.pair_files import pairs_from_csv
from course_utils.errors import CourseError
from course_utils.objectives import SIMILARITIES
from course_utils.scans import affine as alignment
from course_utils.scans.many_pairs import TABLE, register_pairs
from course_utils.scans.mapping import FURTHER_ITERATIONS, ITERATIONS, SIMILARITY
from course_utils.scans.registration import SAMPLES, register_files
from course_utils.scans.results import LAYOUTS

AffineSimilarity = StrEnum("AffineSimilarity", list(alignment.SIMILARITIES))
Similarity = StrEnum("Similarity", list(SIMILARITIES))
Layout = StrEnum("Layout", list(LAYOUTS))


def register(
    moving: Annotated[Path | None, typer.Option(help="The scan to be moved.")] = None,
    fixed: Annotated[Path | None, typer.Option(help="The scan it is moved onto.")] = None,
    moved: Annotated[Path | None, typer.Option(help="Result: the moved scan on the fixed scan's grid.")] = None,
    warp: Annotated[Path | None, typer.Option(help="Result: the displacement field that made it.")] = None,
    inverse_warp: Annotated[
        Path | None, typer.Option(help="Result: the field that moves the fixed scan; on the moving scan's grid.")
    ] = None,
    moving_label: Annotated[Path | None, typer.Option(help="Label map of the moving scan.")] = None,
    moved_label: Annotated[Path | None, typer.Option(help="Result: that label map, moved (nearest neighbour).")] = None,
    spread: Annotated[
        Path | None,
        typer.Option(
            help=f"Result: how far apart {SAMPLES} answers of a probabilistic network lie, in mm, with --iterations 0."
        ),
    ] = None,
    moving_mask: Annotated[
        Path | None, typer.Option(help="Where it is 0, the moving scan counts in no similarity (a lesion, say).")
    ] = None,
    fixed_mask: Annotated[Path | None, typer.Option(help="The same of the fixed scan.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Many pairs instead of --moving and --fixed: a CSV with the columns fixed_image, moving_image and, "
            "where label maps shall be moved along, moving_label."
        ),
    ] = None,
    out_folder: Annotated[Path | None, typer.Option(help="For the results of --pairs: a new folder.")] = None,
    write: Annotated[
        str, typer.Option(help="Which results of --pairs: moved, warp, inverse_warp, moved_label, spread.")
    ] = "moved,moved_label",
    model: Annotated[Path | None, typer.Option(help=MODEL)] = None,
    smoothness: Smoothness = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Register by optimisation alone.")] = False,
    affine: Annotated[
        bool | None,
        typer.Option(
            "--affine/--no-affine",
            help="Align with 12 parameters first.",
            show_default="where the scans do not lie on each other",
        ),
    ] = None,
    affine_similarity: Annotated[
        AffineSimilarity,
        typer.Option(help="What the alignment compares: correlation, or mi for scans of different contrast."),
    ] = AffineSimilarity.correlation,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Steps that refine the field for this pair; 0 for the network alone.",
            min=0,
            show_default=f"{ITERATIONS}, {FURTHER_ITERATIONS} after a network; 0 for a network trained with labels, "
            "which knows more than a pair's images show",
        ),
    ] = None,
    similarity: Annotated[
        Similarity,
        typer.Option(
            help="What these steps compare: ncc and ncc-edges for scans of one contrast, ssd where their intensities "
            "are equal too, mi and mind for scans of different contrast."
        ),
    ] = Similarity[SIMILARITY],
    as_images: Annotated[
        bool,
        typer.Option("--as-images", help="The scans are images though they look like label maps: masks, phantoms."),
    ] = False,
    layout: Annotated[
        Layout, typer.Option(help="Of the fields: itk for ITK, ANTs and 3D Slicer; learn2reg for the challenge.")
    ] = Layout.itk,
    device: Device = "auto",
) -> None:
    """Register two scans, or many pairs, with a network, by optimisation, or both.

    Shapes, spacings, orientations and origins may differ; the affines say where the scans are, and scans that do not
    lie on each other there are aligned first. Results lie on the fixed scan's grid and keep the moving scan's data
    type. Fields of the layout itk hold affine and deformation in one, and antsApplyTransforms or SimpleITK apply them
    alone. Files are NIfTI, MGZ, NRRD or MetaImage, by their names.

    \b
    Example:
      python -m course_utils register --moving M.nii.gz --fixed F.nii.gz --moved OUT.nii.gz --no-model
    """
    if (model is None) != no_model:
        raise CourseError("register needs either --model FILE-OR-NAME or --no-model: give one of them")
    quiet = Settings.current().quiet
    results = {"moved": moved, "warp": warp, "inverse_warp": inverse_warp, "moved_label": moved_label, "spread": spread}
    one_pair = {"moving": moving, "fixed": fixed, "moving_label": moving_label, **results}
    one_pair |= {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    options: dict[str, Any] = {
        "smoothness": smoothness,
        "affine": affine,
        "affine_similarity": affine_similarity.value,
        "iterations": iterations,
        "similarity": similarity.value,
        "layout": layout.value,
        "as_images": as_images,
        "device": device_of(device),
    }
    if pairs is not None:
        given = [name for name, path in one_pair.items() if path is not None]
        if given or out_folder is None:
            raise CourseError("--pairs goes with --out-folder, and without the files of one pair: mend the options")
        table = register_pairs(
            pairs_from_csv(pairs), out_folder, write=write.split(","), model=model, progress=not quiet, **options
        )
        failed = int((table["fault"] != "").sum())
        typer.echo(f"{len(table) - failed} pairs registered in {out_folder}, a row for each in {out_folder / TABLE}")
        if failed:
            raise CourseError(f"{failed} of {len(table)} pairs could not be registered: they are named above")
        return
    missing = [f"--{name}" for name in ("moving", "fixed", "moved") if one_pair[name] is None]
    if moving is None or fixed is None or moved is None or out_folder is not None:
        raise CourseError(
            f"register needs --moving, --fixed and --moved ({', '.join(missing)} missing), or --pairs and --out-folder"
            if missing
            else "--out-folder goes with --pairs: leave it out"
        )
    if not quiet:
        typer.echo(f"registering {moving} to {fixed}", err=True)
    report = register_files(
        moving,
        fixed,
        {name: path for name, path in results.items() if path is not None},
        model=model,
        moving_label=moving_label,
        moving_mask=moving_mask,
        fixed_mask=fixed_mask,
        **options,
    )
    typer.echo(report)
