"""One run: its inputs, its rounds, and the ways to reach its clients behind one Flower ``Grid``.

inputs         what a configuration names: data, split, strategy; and whether they fit together
consent        whose configuration a directory holds, and what a stranger's may not do
prepared       a run whose directory is prepared, and what its server does with a grid
loop           the rounds, the same for every strategy and runtime
resumable      what the loop asks of a strategy
stock          any other Flower strategy, wrapped so that it offers that
best           the best round's state, where it can be served
lines          a round's metrics line, and what is counted of messages
checkpoint     what the server needs to go on
flower         the Grid of a run that Flower started: whom its nodes host
inprocess      a Grid that runs a ClientApp's virtual nodes right here
own_grid       what our Grids share
ordered        replies in the order of the messages, on grids that hand them over as they come
simulation     the same nodes in Ray's actors, through Flower's simulation
bundles        many nodes' messages in one of Flower's
shared_arrays  arrays that go to many nodes, once
cluster        a Ray cluster that is running
surroundings   what Flower and Ray find in the environment, and what of theirs reaches the screen
"""
