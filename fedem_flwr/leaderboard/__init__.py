"""Many runs: a grid of methods, data sets, protocols and seeds, its cells as processes, and the folder it leaves.

grid      what was asked for, as cells, each with its resolved configuration
keys      what makes two cells the same: split, configuration, sources
splits    the splits that the cells of a folder share
folder    a leaderboard's folder: its mark, its lock, the places in it
cells     a cell's run directory: prepared, begun, finished
memory    about how much a cell will take, and what there is
schedule  cells as processes, several at a time
pace      how long cells take: the ETA, and quick probes for --dry-run
display   live progress of cells
compare   the whole comparison, from what was asked for to the folder
gather    figures of finished runs
"""
