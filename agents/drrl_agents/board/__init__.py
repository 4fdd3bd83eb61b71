"""What TensorBoard shows of a task beside the training runs: baselines, the oracle, means over seeds, a comparison.

Folders, and so the runs' names, under the logdir:

    TASK/ALGO-POLICY/seed-N   a training run; a comparison adds its final scores there
    TASK/ALGO-POLICY/mean     mean over the seeds with its interval, for the custom-scalar charts
    TASK/baselines/NAME       a rule, an offline basis or the oracle: flat lines from step 0 to the agents' last
    TASK/compare-SPLIT        Pareto front, scores side by side, the table
    about                     what the tags are, and the columns of the HParams tab

`comparison.write_board` writes all of it; `baselines.write_baselines` what a training run can have beside it.
"""
