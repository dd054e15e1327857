"""Ways to reach the clients (in this process, Ray) behind one Flower ``Grid``, and the rounds of a run.

inputs       what a configuration names: data, split, strategy
run          a whole run: prepare, carry out
loop         the rounds, for any strategy and runtime
lines        a round's metrics line, and what is counted of messages
outcome      what is written down of a finished run
served       the model that a finished run serves, and a last look at it
node         a node's own side: data, state, cohort
wire         arrays in messages, copied only where a message leaves the process
inprocess    a Grid that runs a ClientApp's virtual nodes right here
simulation   the same nodes as Ray actors, through Flower's simulation
surroundings what Flower and Ray find in the environment
state_store  what a node keeps between rounds
stock        what Flower's own strategies remember, for checkpoints
checkpoint   what the server needs to go on
controls     the same method without federation
audit        the same methods under both protocols
recommend    items for a user of a finished run
"""
