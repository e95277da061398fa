"""A general text that is always at hand: short paragraphs on everyday matters, written for flagtrl,
about no market.
"""

GENERAL_TEXT = """\
Bread needs little: flour, water, salt and time. The dough rests under a cloth until it has grown to twice its size, is folded,
and rests again. In a hot oven the crust turns brown within half an hour, and the kitchen smells of it until the evening.

The river rises in the hills to the north, where two streams meet below an old mill. For most of the year it can be crossed on
foot. After the snow melts it carries branches and mud, and the ferry stays on its rope at the bank for a week or two.

Most birds that nest in the north leave before the first frost. They fly by night, steer by the stars, and rest by day where
they find water. Why some of the same kind stay, and live through the winter on seeds, is not well understood.

A bicycle stays upright because its rider steers into every fall, often without noticing. The turning wheels help less than
people think. A machine without a rider can do it too, if its front wheel is hung so that it follows where the frame leans.

My grandmother kept her letters in a tin box on the shelf above the stove. When she could no longer read them she asked us to,
one every Sunday, and corrected us where we took the handwriting of her brother for that of her father.

To see the rings of a planet through a small telescope, wait for a night without wind. Let the tube cool for an hour, begin
with the weakest lens, and look a little to the side: the edge of the eye sees faint light better than its middle.

The school stands at the end of the street, behind a row of lime trees. In the morning the children come from three villages,
some by bus and some on foot, and the caretaker counts them through the gate as he has done for thirty years.

Stone bridges last because every stone is pressed and none is pulled. The builders set them on a wooden frame, put the last one
into the middle of the arch, and took the wood away. If the banks do not move, nothing needs to hold the stones together.

A fever is not the illness but a part of the answer to it: many germs grow more slowly when it is warm. Rest, drink, and wait.
A doctor should look at it if it lasts for more than three days, or if the neck is stiff.

The first maps of the coast were made by sailors who measured angles from the deck. They left out what they could not see, and
drew the harbours larger than they were, since that was where their readers wanted to arrive.

Chess is played by two people on a board of sixty-four squares. Each has sixteen pieces, and they move in turn. The game ends
when a king is attacked and cannot escape; if a player has no legal move but is not attacked, nobody wins.

Rain had fallen since noon, and the fields behind the house were under water. We carried the hens up to the hay, one under
each arm, and waited for the neighbour with the boat. He came after dark, singing, so that we should hear where he was.
"""
