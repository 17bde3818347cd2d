"""What this machine's language model costs a step, kept in the calibration record beside the machine itself."""

from __future__ import annotations

from windlass.core import settings
from windlass.core.errors import ModelError, NotFound
from windlass.core.progress import Progress, check_cancelled
from windlass.serving.cost import StepFit
from windlass.sim.calibrate import read_record, update_record

SECTION = "steps"
_PAGES = 400
_SECONDS = 6.0
"""Steps are not repeated beyond this: the whole calibration stays under 20 seconds on a machine that is half busy."""


def calibrate_steps(progress: Progress) -> StepFit | None:
    """Measure steps of the configured language model on an idle engine, and write their fit into the record.

    None when the model is not installed, or does not run on the compiled engine of this machine.
    """
    from windlass.models.cpu_engine import CpuEngine
    from windlass.models.generate import LocalModel
    from windlass.models.store import locate
    from windlass.serving.kv import KVManager
    from windlass.serving.numba_executor import NumbaExecutor
    from windlass.serving.step_time import measure, warm_up

    name = settings.load().models.decoder
    try:
        decoder = LocalModel.load(locate(name)).decoder
    except (ModelError, NotFound):
        return None
    if not isinstance(decoder, CpuEngine):
        return None
    check_cancelled(progress)
    progress.start("measure steps", None, "steps")
    pool = decoder.new_pool(pages=_PAGES)
    kv = KVManager(pool, _PAGES, page_tokens=pool.page_tokens)
    executor = NumbaExecutor(decoder, pool)
    pool.data.fill(0)  # touched now, so that no step pays for the first use of a page of memory
    warm_up(executor, kv)
    found = measure(executor, kv, seconds=_SECONDS)
    progress.finish("measure steps")
    update_record(SECTION, {"model": name, **found.to_json()})
    return found


def known_steps(model: str) -> StepFit | None:
    """The fit of `model` in this machine's record; None when it was never measured."""
    found = read_record().get(SECTION)
    if found is None or found.pop("model") != model:
        return None
    return StepFit(**found)
