"""What would it do on machines that are not here? Named hardware, operator costs and a virtual clock.

The rooms, in the order a question passes them:

    hardware    `hardware("H100-SXM")`, `ClusterSpec`: devices, memory tiers and links, every number with its source
    cost        `CostModel`: seconds, joules and the error bar of an operator, a collective, a move
    calibrate   `fit` efficiencies to measured rows; `measure_local`: this machine as a device
    engine      `Sim`: the event queue; processes are generators
    sharing     processors and links that are shared by what runs on them
    executor    `SimExecutor`: runs the policies that also run for real, and reports `SimReport`
    trace       `RequestTrace`: when requests arrive, and how long they are

Everything that comes out of here is `simulated`, and says with which calibration error.
"""
