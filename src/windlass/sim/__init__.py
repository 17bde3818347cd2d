"""What would it do on machines that are not here? Named hardware, operator costs and a virtual clock.

The rooms, in the order a question passes them:

    hardware     `hardware("H100-SXM")`: devices, memory tiers, fabrics; every number of `hardware.toml` has its source
    cluster      `ClusterSpec`: devices, machines and the links between them
    cost         `CostModel`: seconds, joules and the error bar of an operator, a collective, a move
    collectives  the messages of an all-reduce, and their price
    calibrate    `fit` efficiencies to measured rows (`fitting`); `measure_local`: this machine as a device
    engine       `Sim`: the event queue; processes are generators
    sharing      processors and links that are shared by what runs on them; memory tiers
    world        a cluster in virtual time, and what goes wrong in it
    executor     `SimExecutor`: runs the policies that also run for real, or a recorded program (`table_run`)
    report       `SimReport`: what happened, as figures and as a trace for a browser
    trace        `RequestTrace`: when requests arrive, and how long they are
    scenarios    what a file for `windlass simulate` can ask

Everything that comes out of here is `simulated`, and says with which calibration error.
"""
