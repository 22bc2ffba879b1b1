"""A results file as the user has it: what it holds, drawn, exported, and held against what it was computed from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, overload

from prunekit.network.devices import device_errors
from prunekit.network.ordinary import ordinary_tensors
from prunekit.results import Results

if TYPE_CHECKING:
    from prunekit.reports.exporting import Exported
    from prunekit.reports.picture import Picture
    from prunekit.runs.verification.claims import Verification


class RunResults(Results):
    """A results file, read-only, that can be drawn, exported, and held against what it was computed from."""

    @overload
    def plot(self, path: str | Path, figure: str = "run", columns: int | None = None) -> None: ...
    @overload
    def plot(self, path: None = None, figure: str = "run", columns: int | None = None) -> Picture: ...
    def plot(
        self, path: str | Path | None = None, figure: str = "run", columns: int | None = None
    ) -> Picture | None:
        """Draw a figure into a file, or for a notebook; needs matplotlib, no torch. Its global state is left alone.

        Args:
            path: Ends in ``.png``, ``.pdf`` or ``.svg``; replaced if it is there. Left out: the picture is returned, and a
                notebook shows it.
            figure: ``run``, ``loss`` (losses and errors over sparsity), ``honesty`` (predicted against measured
                changes of the loss), ``layers`` (their sparsities), or a probe's label, which draws what it found.
            columns: For a paper: as wide as one column (3.4 inches) or two (7 inches), with letters of that size and
                without a title. By default for a screen.

        Raises:
            SpecError: If the file name is not one of a picture, or there is no such figure or width.
            ResultsError: If there is nothing to draw, or the file cannot be written.
        """
        from prunekit.reports.figures import figure as named
        from prunekit.reports.figures import title
        from prunekit.reports.picture import check, inline, picture

        if path is None:
            return inline(named(self, figure), title(self), columns)
        target = Path(os.path.expanduser(path))
        check(target, columns)
        picture(target, named(self, figure), title(self), columns)
        return None

    def _repr_html_(self) -> str:
        from prunekit.reports.notebook import of_results

        return of_results(self)

    def to_html(self, path: str | Path | None = None, overwrite: bool = False) -> str:
        """The run as one page for a browser, which fetches nothing; needs matplotlib, no torch.

        Args:
            path: Where to write it as well; ends in ``.html`` or ``.htm``.
            overwrite: Replace a page that prunekit wrote; no other file is ever replaced.

        Returns:
            The page.

        Raises:
            SpecError: If the file name is not one of a page.
            ResultsError: If the file is there, or cannot be written.
        """
        from prunekit.reports.figures import title
        from prunekit.reports.page.page import page
        from prunekit.reports.page.sections import layer_data, sections
        from prunekit.reports.page.target import check_target, write

        target = None if path is None else check_target(Path(os.path.expanduser(path)), overwrite)
        content = page(title(self), sections(self), {"layers": layer_data(self)})
        if target is not None:
            write(target, content)
        return content

    def export(
        self,
        weights: str | Path | None = None,
        masks: str | Path | None = None,
        phase: str | None = None,
        step: int | None = None,
        overwrite: bool = False,
        form: str = "dense",
    ) -> Exported:
        """Write weights, masks or both as safetensors; needs no torch.

        Args:
            weights: File for the weights.
            masks: File for the masks, bool, True = kept.
            phase: Of the weights: ``dense``, ``pruned`` or ``finetuned``. By default the last that there is.
            step: Of the masks: after it; 0 is before the first. By default the last.
            overwrite: Replace a file that was exported earlier; no other is ever replaced.
            form: Of pruned matrices: ``dense``; ``csr``, by rows; ``2:4``, the two values of every four and their places;
                ``compressed-tensors``, values and a bitmask as that package has them.

        Returns:
            Which phase and which step were written.

        Raises:
            SpecError: If neither file is named, both are one, or a matrix does not have the form.
            ResultsError: If there is no such phase or step, or a file is there or cannot be written.
        """
        from prunekit.reports.exporting import export

        def at(path: str | Path | None) -> Path | None:
            return None if path is None else Path(os.path.expanduser(path))

        return export(self, at(weights), at(masks), phase, step, overwrite, form)

    def export_pretrained(
        self,
        source: str | Path,
        out: str | Path,
        phase: str | None = None,
        overwrite: bool = False,
    ) -> str:
        """Write the network as a folder that ``from_pretrained`` of transformers loads; needs transformers.

        Args:
            source: The folder that the dense network came from: architecture, tokenizer and the like are taken from there.
            out: The new folder; masks and where they come from lie in it too.
            phase: ``dense``, ``pruned`` or ``finetuned``. By default the last that there is.
            overwrite: Replace a folder that was written so earlier; no other is ever replaced.

        Returns:
            The phase that was written.

        Raises:
            SpecError: If the source holds no network, or transformers is not installed.
            CheckpointError: If the network is another.
            ResultsError: If there is no such phase, or the folder is there or cannot be written.
        """
        from prunekit.reports.exporting import last_phase
        from prunekit.reports.pretrained import export_pretrained

        chosen = phase or last_phase(self)
        home, target = (Path(os.path.expanduser(path)) for path in (source, out))
        export_pretrained(self, home, target, chosen, overwrite)
        return chosen

    def verify(
        self,
        *,
        code: bool = True,
        block: Iterable[str] = (),
        overrides: Mapping[str, object] | None = None,
        device: str = "cpu",
        say: Callable[[str], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Verification:
        """Recompute from the stored weights and the data what the file claims, in float64; needs torch.

        Args:
            code: ``False`` follows no file where it names Python to run: factories, and plugins that are not built in.
            block: Plugins to leave out.
            overrides: Dotted path in the file's spec to value, such as where data lie now: ``{"folder": "/data"}``.
            device: Where it is computed.
            say: Told of Python that the file names, before it runs. By default nobody is.
            progress: Told of what is being looked at.

        Returns:
            A claim for each thing that the file says: it ``holds``, ``differs``, or is ``unchecked``, and why.

        Raises:
            ResultsError: If the file is damaged.
            DeviceError: If the device is not there.
        """
        from prunekit.plugins.host import manager_for
        from prunekit.runs.verification.verify import verify

        def nobody(text: str) -> None:
            del text

        with device_errors(), ordinary_tensors():
            manager = manager_for(block, code)
            return verify(self, manager, overrides, device, say or nobody, progress or nobody)
