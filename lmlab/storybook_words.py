"""The words of the storybook: lists to choose from. `lmlab.storybook_grammar` explains the notation of slots.

`[name] key=value …` opens a list and gives all its entries those attributes. Entries stand between commas, or one on
a line with attributes of its own: `entry; key: value, value`. An indented line goes on with the one above. `@name` is
the entries of another list, `4*entry` gives a weight by hand; otherwise the first entry of a list is five times as
likely as its last, as in a language few words are common and most are rare.
"""

WORDS = """
[girls] he=she his=her him=her kind=girl
Mia, Lily, Nora, Anna, Ella, Ruby, Clara, Rosie, Hazel, Ivy, Lucy, Alice, Greta, Maya, Nell, Polly, Sofia, Zoe, Ada
Daisy, Edith, Gwen, Holly, Ida, June, Kira, Lena, Molly, Nina, Olive, Rosa, Sally, Tess, Vera, Willa, Zelda, Amy
Bonnie, Cora, Dora, Elsie, Freya, Isla, Judy, Kate, Lotta, Mabel, Nadia, Pearl, Ruth, Stella, Thea, Luna, Marta, Naomi
Flora, Agnes, Beth, Celia, Delia, Esther, Fiona, Gerda, Hilda, Iris, Jenny, Kitty, Laura, Maggie, Nancy, Odette, Paula
Rita, Sigrid, Trudy, Ulla, Wendy, Yvonne, Amina, Bianca, Carla, Elena, Fatima, Gina, Hana, Irma, Jasmin, Leila, Mira
Noor
[boys] he=he his=his him=him kind=boy
Tom, Ben, Max, Leo, Sam, Noah, Finn, Oscar, Jack, Henry, Theo, Milo, Otto, Emil, Hugo, Felix, Jonas, Luke, Adam, Paul
Peter, Simon, Victor, Walter, Arthur, Bruno, Carl, Daniel, Eddie, Frank, George, Harry, Ivan, James, Kai, Liam, Martin
Ned, Owen, Philip, Ralph, Tim, Vincent, Will, Zack, Albert, Billy, Casper, David, Elias, Fred, Gus, Isaac, Jasper
Louis, Aron, Boris, Cedric, Dennis, Erik, Fabian, Gavin, Hector, Ingmar, Joel, Karim, Lars, Matti, Nathan, Olaf
Patrick, Roland, Sven, Tobias, Umar, Valentin, Wilbur, Xavier, Yannis, Amir, Bela, Conrad, Dario, Edgar, Franco
Gregor, Hamid, Igor, Julius, Kofi
[critters_she] he=she his=her him=her
Clover, Poppy, Nutmeg, Maple, Pebble, Willow, Dimple, Honey, Juniper, Pansy, Plum, Primrose, Saffron, Tansy, Truffle
Velvet, Violet, Dot, Ginger, Heather, Minnie, Peaches, Sorrel, Twinkle, Birdie, Coco, Acorn, Bluebell, Cinnamon
Dewdrop, Feather, Lavender, Meadow, Rosebud, Sparkle, Sugar
[critters_he] he=he his=his him=him
Pip, Bramble, Rusty, Hopper, Button, Barnaby, Bumble, Chester, Digger, Fudge, Gilbert, Jumper, Moss, Nibbles, Pickle
Pepper, Scamp, Smudge, Snuffle, Sprout, Tumble, Waffles, Whiskers, Archie, Basil, Rufus, Biscuit, Dusty, Flint
Grumbles, Huckle, Mumbles, Nutkin, Patch, Thistle, Twig
[critters]
@critters_she, @critters_he
[children]
@girls, @boys
[animals] names=@critters
rabbit, fox, mouse, bear, hedgehog, squirrel, badger, otter, kitten, piglet, puppy, lamb, mole, beaver, duckling
raccoon, penguin, pony, chipmunk, panda, koala, hamster, weasel, dormouse, elephant, lion, giraffe, dragon
[kind]
4*girl; names: @girls
4*boy; names: @boys
@animals
[pals_she] he=she his=her him=her
Jo, Wanda, Bella, Petra, Sunny, Tilly, Emma, Yara, Fay, Mina, Dolly, Lulu, Heidi, Ingrid, Tara, Una, Dotty, Nelly
Susi, Mona, Greer, Pia
[pals_he] he=he his=his him=him
Rico, Toby, Nils, Marco, Ozzie, Bobby, Andy, Hans, Kip, Mateo, Nico, Percy, Stan, Wally, Yusuf, Ravi, Omar, Anton
Ludo, Pavel, Rudi, Timmy
[pals]
@pals_she, @pals_he
[newcomers] names=@pals
neighbor, goat, duck, child, lion cub, calf, cousin, donkey, goose, fawn, camel, monkey, zebra, crane, young seal
cowboy, hippo, little prince, acrobat, turtle
[pets]
cat, dog, goldfish, hen, parrot, guinea pig, donkey, snail, goose, turtle, goat, lizard, duck, canary, cricket
rooster, ferret, tomcat, pigeon, sheep, rat, beetle, peacock
[pet_names]
Muffin, Captain, Socks, Bubbles, Noodle, Pancake, Duchess, Marble, Tiger, Snowball, Crumb, Pirate, Banjo, Mister Blue
Cupcake, Rocket, Shadow, Professor, Pumpkin, Lady, Spot, Comet, Trumpet, Dumpling, Gravy, Domino, Zigzag, Pudding
Mopsy, General, Sardine, Turnip, Bandit, Fluff, Thunder, Lollipop
[looks]
fat, tame, spotted, tiny, lazy, fluffy, one-eyed, hungry, greedy, singing, gray, three-legged, grumpy old, bossy
freckled, rather rude, sneezing, long-legged, well-mannered, toothless, ticklish, clumsy, snow-white, sulky, bouncing
vain

[traits]
brave, curious, kind, clever, shy, cheerful, gentle, stubborn, dreamy, funny, quiet, lively, patient, careful, merry
bold, forgetful, polite, sleepy, busy, noisy, playful, thoughtful, helpful, honest, lucky, messy, nimble, restless
silly, tidy, small, adventurous, bouncy, calm, chatty, eager, friendly, generous, giggly, graceful, grumpy, handy
hopeful, inventive, jolly, loyal, mischievous, modest, musical, neat, nosy, plucky, quick, scruffy, sensible, serious
sharp-eyed, smiling, spirited, sturdy, trusting, warmhearted, watchful, witty, young, absent-minded, bashful
bright-eyed, carefree, clumsy, cunning, daring, determined, fidgety, freckled, good-natured, hardworking, impatient
joyful, long-legged, mild, obedient, peaceful, quick-witted, red-haired, round-cheeked, sly, soft-spoken, sunny
talkative, tender, tireless, unlucky, wild, wide-eyed
[virtues]
never told a lie, was always hungry, could not sit still, talked to everyone, was hardly ever late
laughed at everything, asked a hundred questions a day, had never seen the sea, knew every song by heart
was good at waiting, always forgot the time, had more ideas than buttons, could sleep anywhere, was never bored
blushed easily, collected almost everything, had a very loud voice, sneezed in the sun, could keep a secret
was fond of cheese, hated to be late, learned everything twice, gave a name to every cloud, was taller on tiptoe
[towns]
Maplewood, Little Harbor, Greenhill, Willowbrook, Pebble Bay, Foxglove, Windy Corner, Appleton, Honeywell, Goosefield
Silver Creek, Buttercup Valley, Snowdon Mill, Seven Bridges, Plum Hollow, Owl Rock, Sandy Point, Thistledown
Lower Puddle, Upper Puddle, Crooked Elm, Barley Cross, Saint Pippin, Mouse Green, Old Ferry, Kettle Lane
Lantern Street, Otterby, Ravenhill, Mossy Bank
[calm]
quiet, little, old, sunny, sleepy, misty, green, lonely, famous, windy, forgotten, busy, narrow, mossy, noisy, crooked
beautiful, shady, foggy, hidden, dusty, distant, ancient, pretty, haunted, snowy, muddy, well-known
[landmarks]
lake, river, forest, hill, mill, farm, village, harbor, bridge, meadow, orchard, castle, station, church, valley, road
pond, market square, lighthouse, oak, bakery, quarry, canal, vineyard, beach, apple tree, waterfall, well, school
swamp
[nearness]
near, beside, by, behind, not far from, across from, next to, within sight of
[homes]
40*{:nearness} {a :calm} {:landmarks}
8*in the town of {:towns}
6*halfway between {:towns} and the sea
4*in {a :sizes} {:dwellings} near {:towns}
by the sea, on a small farm, in a village of red roofs, in a house with a crooked chimney, high up in the mountains
above a toy shop, in a valley full of daisies, between two tall oaks, on a boat that never sailed
where three roads met, past the last lamp post, on the sunny side of the street
[dwellings]
cottage, cabin, house, hut, tower, burrow, farmhouse, treehouse, caravan, houseboat, attic, barn, windmill, shack, inn
villa
[sizes]
tiny, snug, crooked, little, cozy, tumbledown, round, narrow, mossy, whitewashed, lopsided, leaky, drafty, bright
wooden, pointed, squeaky, thatched, red-roofed, cluttered
[pastimes]
climbing trees, collecting shells, singing to the moon, jumping in puddles, drawing birds, reading under the covers
baking cookies, chasing butterflies, telling jokes, building dams, counting stars, picking berries, making up songs
rolling down hills, sailing paper boats, asking questions, feeding ducks, painting stones, blowing bubbles
digging for worms, watching clouds, playing marbles, dancing in the kitchen, skipping rope, catching fireflies
pressing flowers, swinging very high, listening to the rain, wearing funny hats, looking for treasure
balancing on walls, writing letters, walking backward, teaching the hens to sing, folding paper cranes, popping corn
polishing spoons, talking to snails, sledding after dark, eating soup with a fork, learning long words
taking clocks apart, waving at trains, whistling in the dark, carving boats out of bark, racing the wind
sleeping in the hay, making faces in the mirror
[habits]
fed the hens, watered the beans, swept the front steps, waved to the mail carrier, sang in the bathtub
counted the boats, ate two boiled eggs, visited the ducks, polished the door knob, said hello to the sun
picked a flower for the table, carried in the firewood, rang the breakfast bell, walked to the well and back
brushed the donkey, drank a cup of warm milk, looked for snails, read one page of a very long book
wound up the kitchen clock, wrote down a dream, tied both shoes twice, cut a slice of bread for the birds
climbed the garden wall, did ten somersaults, raced the milk cart to the corner, opened all the windows
asked the cat for advice, checked the rain barrel, buttered toast for the whole family, practiced yawning
greeted each cow by name
[clothes]
scarf, hat, coat, cap, sweater, raincoat, bathrobe, nightcap, apron, vest, bow tie, feather, necktie, cape, helmet
shawl, straw hat, jacket, belt, ribbon, glove, bonnet, wig, turban
[clothes2]
scarf of wool, hat with bells, coat of rags, pair of boots, pair of mittens, mask, pair of socks, cloak
pair of slippers
[even_times]
in bed, in summer, at breakfast, on rainy days, in the bathtub, on Sundays, at the beach, in school, upside down
under water, in the dark, on holidays, while eating soup, up in the trees, at weddings
[pocket_adjectives]
smooth, small, rusty, bent, lucky, broken, shiny, old, sticky, blue, secret, round, half-eaten, striped, borrowed
wooden, mysterious, silver
[pocket_nouns]
stone, button, key, spoon, marble, feather, whistle, ribbon, map, coin, pencil, acorn, biscuit, shell, thimble, nail
candle, ticket, magnet, walnut, compass, cork, cookie, bell, snail shell
[nightly]
count the stars, listen to the owls, tell stories to the cat, look at the moon, hum an old tune, read by candlelight
write in a small green book, wave at the passing trains, plan the next adventure, listen to the sea
whisper to the spiders, draw maps of the ceiling, eat crackers in bed, watch the lighthouse, invent new words
talk with the wind, sort buttons, guess what the mice were saying
[kin_she] he=she his=her him=her
grandmother, mother, aunt, big sister, granny, great-aunt, godmother, stepmother
[kin_he] he=he his=his him=him
grandfather, father, uncle, big brother, grandpa, godfather, great-uncle, stepfather
[family]
@kin_she, @kin_he

[colors]
red, blue, yellow, green, silver, purple, golden, orange, white, striped, pink, shiny, spotted, brown, black, copper
crimson, checkered, turquoise, rainbow-colored, cream-colored, scarlet, sky-blue, emerald, violet, lemon-yellow
polka-dotted, gray, ruby-red, wine-red, flowered, starry
[weather]
sunny, windy, rainy, foggy, snowy, cloudy, chilly, warm, bright, gray, misty, breezy, quiet, frosty, stormy, drizzly
crisp, mild, muggy, icy, cold, golden, blustery
[days]
morning, day, afternoon, Monday, Saturday, Sunday, Tuesday, Friday, Wednesday, Thursday
[whens]
the wind blew from the sea, the cherries were ripe, school was out, the bells were ringing, the grass was still wet
the clouds looked like sheep, everyone was at the market, the geese flew south, the first snow had fallen
the roses bloomed, it smelled of rain, the hay was cut, there was nothing to do, the swallows came back
the circus was in town, the clocks had stopped, the bread was in the oven, the sky was full of kites
the leaves were falling, the baker had overslept
[moments]
6*{:weather} {:days}
4*{:days} when {:whens}
2*{:weather} {:days} in {:seasons}
[seasons]
spring, summer, autumn, winter, early spring, late summer, late autumn, midwinter
[scenery]
wind; does: smelled of apples, whistled in the chimneys, played with the laundry, told old secrets, came from far
  away, turned all the weathercocks
sun; does: peeked over the hill, painted the walls gold, was still in bed, shone on the roofs, tickled every nose
river; does: hummed a song, glittered like glass, carried leaves to the sea, was full of clouds, ran a little faster
  than usual
bees; does: buzzed in the clover, were drunk with honey, danced above the roses, had the day off
trees; does: whispered to each other, dropped their leaves, stretched in the light, held their breath, bowed to the
  wind
clouds; does: looked like sheep, hurried across the sky, were pink at the edges, piled up like pillows, had nowhere to
  go
birds; does: sang as loudly as they could, sat in a row on the roof, argued about breakfast, built their nests, fell
  silent
church bells; does: rang across the fields, were a little out of tune, woke the pigeons
baker; does: was singing at the oven, burned the first bread, put fresh buns in the window, gave crumbs to the birds
cats; does: slept on the warm stones, watched from the walls, dreamed of fish, washed their ears
frogs; does: sang in the ditch, sat like kings on their stones, waited for flies
flowers; does: opened one by one, nodded in the breeze, smelled of honey, turned to the light, were wet with dew
streets; does: were empty and still, smelled of coffee, shone after the rain, filled with people
hills; does: were blue in the distance, wore hats of mist, lay there like sleeping bears
sea; does: rolled its green waves, was as flat as a plate, roared behind the dunes, smelled of salt
cows; does: chewed and said nothing, stood knee-deep in the grass, stared at the train
snails; does: were out for a walk, raced along the wall, carried their houses to market
old men; does: played cards in the shade, talked about the weather, slept on the benches
children of the town; does: were flying kites, ran after a hoop, sang a rhyme about a goat
grass; does: was full of crickets, reached up to the knee, was white with frost, smelled like summer
[places]
pond; spots: among the reeds, under a lily pad, beside the little dock, behind the cattails, near the sleepy ducks, on
  a floating log
orchard; spots: under the apple trees, in an empty basket, beside the ladder, in the long grass, behind the cider
  press
mill; spots: under the big wheel, behind the flour sacks, next to the millstone, on the creaky stairs
barn; spots: in the hay, behind the milk cans, under the old wagon, next to the sleeping cow, in the horse trough
river; spots: under the stone bridge, between two wet rocks, by the fishing boats, on the sandy bank, among the willow
  roots
meadow; spots: in the tall grass, beside the mossy stump, among the poppies, under the hay cart, next to a molehill
beach; spots: in a tide pool, behind the sand dune, under a heap of seaweed, beside the broken boat, inside a
  sandcastle
market; spots: under the fish stall, among the cabbages, behind the flower cart, next to the cheese, in a crate of
  pears
forest; spots: under the tallest pine, in a hollow log, among the ferns, beside a ring of mushrooms, behind a mossy
  rock
garden; spots: between the carrots, behind the watering can, under the rose bush, beside the scarecrow, in a flower
  pot
lighthouse; spots: on the winding stairs, behind the great lamp, under a coil of rope, beside the iron door
playground; spots: under the slide, in the sandbox, behind the swings, on top of the seesaw, beside the big tire
library; spots: between two dusty books, under the reading chair, behind the globe, on the highest shelf
castle; spots: behind the throne, in a suit of armor, under the drawbridge, at the top of the tower, beside the moat
harbor; spots: inside a lobster trap, behind the barrels, under an old sail, on the last pier, next to the anchor
bakery; spots: behind the oven, under the bread rack, next to the sugar jar, in a bag of flour
cave; spots: behind the waterfall, in the darkest corner, under a sleeping bat, beside a glowing pool
hill; spots: at the very top, under the lonely oak, beside the stone wall, among the sheep, in a patch of thistles
station; spots: under the wooden bench, behind the big clock, next to the ticket window, between two suitcases
toy shop; spots: among the dolls, behind the rocking horse, under a pile of bears, next to the tin soldiers
well; spots: inside the bucket, behind the stones, under the little roof, at the end of the rope
stable; spots: in the manger, behind the saddles, under the straw, beside the gray mare
pumpkin patch; spots: between two fat pumpkins, under a curly vine, beside the wheelbarrow, behind the fence
bell tower; spots: under the great bell, on the dusty stairs, behind the pigeons, next to the bell rope
schoolyard; spots: under the climbing frame, behind the bicycle shed, beside the flagpole, next to the chalk drawings
greenhouse; spots: among the tomatoes, under the lemon tree, behind the cactus, between the seed trays
theater; spots: behind the red curtain, under the stage, in the last row, inside the piano
museum; spots: under the whale bones, behind the mummy, beside the golden mask, in the hall of clocks
circus tent; spots: under the trapeze, behind the lion cage, in the drum of the clown, among the juggling clubs
quarry; spots: beside the rusty crane, under a gray boulder, at the edge of the pit
post office; spots: behind the counter, among the parcels, in the wrong letter box, under the scales
vineyard; spots: between the vines, under a leaf as big as a hat, beside the wine cart
[helpers]
owl; came: glided down from a branch, blinked in the doorway; said: hooted
frog; came: hopped out of the ditch, jumped onto a stone; said: croaked
crow; came: landed on the fence, flapped onto the roof; said: cawed
snail; came: crept out from under a leaf, came slowly up the path; said: whispered
toad; came: crawled out of the mud, popped up beside the step; said: grunted
heron; came: stepped out of the reeds, bent down its long neck; said: said
beetle; came: climbed onto a twig, crawled out of a crack; said: buzzed
goose; came: waddled up the path, marched around the corner; said: honked
turtle; came: poked out its head, came slowly down the road; said: murmured
robin; came: landed on the gatepost, fluttered to the window; said: chirped
bat; came: hung down from the roof, swooped past the lamp; said: squeaked
deer; came: stepped out of the trees, looked over the hedge; said: said softly
donkey; came: trotted along the lane, looked over the gate; said: brayed
hen; came: strutted across the yard, came out of the barn; said: clucked
stork; came: landed on the chimney, sailed down from the sky; said: clattered
cricket; came: hopped onto a daisy, jumped out of the grass; said: chirped
swan; came: glided across the water, spread its white wings; said: sang
spider; came: slid down a silver thread, peeked out of its web; said: whispered
bee; came: buzzed out of a rose, landed on a thistle; said: hummed
magpie; came: swooped down from a pine, hopped along the wall; said: chattered
cat; came: stretched on the windowsill, padded around the corner; said: purred
seagull; came: sailed in on the wind, landed on a post; said: screeched
woodpecker; came: looked out of a hole in a tree, tapped on the door; said: said
firefly; came: blinked in the dusk, floated out of the hedge; said: whispered
ant; came: marched out of the grass, climbed up a blade of grass; said: piped
butterfly; came: settled on a sunflower, drifted over the wall; said: whispered
pigeon; came: fluttered down from the roof, strolled across the square; said: cooed
horse; came: clopped along the road, put its head over the fence; said: neighed
salamander; came: slipped out from under a stone, sunned itself on the step; said: hissed
cuckoo; came: called from the wood, flew over the roof; said: called
earthworm; came: stuck its head out of the ground, wriggled across the path; said: mumbled
lizard; came: darted out of the wall, slid down a warm stone; said: hissed
moth; came: fluttered around the lantern, landed on a coat button; said: breathed
peacock; came: strutted down the avenue, spread its shimmering tail; said: shrieked
[manners]
kind, wise, old, friendly, little, cheerful, grumpy, sleepy, plump, tiny, clever, shy, lame, dusty, polite, gray
young, whiskery, muddy, silver, busy, fine, ragged, good-natured, nearsighted, curious, elegant, proud, hoarse, skinny
thoughtful, yawning, well-traveled, patient, bald, gentle, crooked, dignified, nervous, helpful, wet, weary, smiling
bespectacled, lonely, speckled, handsome, absent-minded, shaggy, humming
[folk]
Farmer Reed, Miss Plum, Granny Fern, Captain Brook, Old Jonathan, Baker Bell, Aunt Dora, Doctor Wren, Miller Brown
Uncle Barley, Miss Pettigrew, Shepherd Joe, Lady Marigold, Postman Pell, Teacher Hill, Cook Martha, Blacksmith Stone
Gardener Green, Sailor Sid, Widow Lamb, Tailor Thimble, Fisherman Ole, Old Agatha, Mayor Pumble, Professor Quill
Painter Pim, Beekeeper Bo, Miss Featherby, Cobbler Knot, Pastor Finch, Madame Violetta, Barber Bristle, Grocer Gilby
Nurse Nightly, Judge Owlington, Old Barnabas
[tasty]
sweet, warm, big, fresh, fine, little, golden, round, delicious, soft, tasty, crisp, homemade, special, perfect, huge
spicy, nutty, sticky, secret
[snack_nouns]
bun, apple, cookie, pear, pancake, sandwich, carrot, plum, cheese, pretzel, muffin, chestnut, waffle, dumpling, peach
cake, pie, turnip, omelet, radish, lollipop, melon, cracker, pudding, tart, biscuit, potato, mushroom, bagel, doughnut
[snacks]
30*{a :tasty} {:snack_nouns}
a slice of bread and honey, half a sandwich, a handful of nuts, a bowl of cream, a piece of cheese, some blackberries
a cup of cocoa, a pancake with jam, the last cherry, a bag of raisins, a spoonful of honey, some sunflower seeds
[sad]
sad, lonely, very small, gloomy, tired, unhappy, sorry, miserable, worried, cross, heavy inside, like crying, blue
lost, as gray as the sky, ready to give up, cold all over, empty inside, close to tears, ashamed, forgotten
like a leaf in the rain, hopeless, wretched, rather silly, left behind, as flat as a pancake, bitterly disappointed
[happy]
happy, glad, proud, pleased, cheerful, delighted, thankful, merry, joyful, excited, full of joy, warm inside
light as air, as happy as a lark, happier than a king, brimming with pride, bubbly, giddy, tickled pink, over the moon
content, as bright as a button, too happy for words, richer than a queen, quite enchanted, in high spirits
[joys]
danced all the way home, sang out loud, jumped up and down, laughed until it hurt, turned three somersaults
clapped and cheered, hopped on one leg, told everyone in the street, threw a hat into the air, hugged a tree
ran twice around the house, whistled a merry tune, did a funny little dance, kissed the cat, shouted for joy
skipped down the road, waved at every cloud, grinned from ear to ear, beat a drum, rang the dinner bell
spun around like a top, danced with a broom, cheered so loudly that the geese flew up, bowed to the flowers
blew a kiss to the moon, rolled in the grass, climbed onto the roof to crow like a rooster
wept a little from happiness, shook hands with everybody, waltzed across the yard
[called]
cried, called, said, wailed, whispered, shouted, exclaimed, groaned, sighed, gasped, sobbed, muttered, mumbled, squealed
murmured, stammered, shrieked, grumbled, sniffed, yelled
[dreamy]
flying, silver, talking, dancing, golden, giant, singing, tiny, sleeping, purple, wooden, friendly, invisible
laughing, upside-down, striped, polite, glowing, snoring, velvet
[dreamt]
ships, fish, trees, bears, castles, mountains, whales, lanterns, geese, puddings, dragons, trains, pillows, teapots
islands, horses, clouds, clocks, violins, mushrooms, snowmen, kings, umbrellas, pirates, stars, cabbages, elephants
balloons, gardens, crocodiles
[dreams]
40*{:dreamy} {:dreamt}
the deep blue sea, a castle in the clouds, tomorrow, a ship made of bread, a train to the stars, riding on a whale
a mountain of pancakes, warm snow, the smiling moon, flying over the rooftops, a very large breakfast
a door in the sky
[until_times]
the sun went down, the stars came out, supper was ready, the moon rose, the church bells rang, it began to rain
their cheeks were red, the lamps were lit, it was time for bed, the crickets sang, every foot was sore
the last light was gone, the owls woke up, the clock struck seven, the fog came in, the bats flew out, the dew fell
somebody called from a window, the milk was cold, the shadows were long, the swallows went to sleep
the ferry blew its horn, the sky turned purple, the dogs began to bark, the lamplighter came by
the candles had burned down
[numbers]
three, two, four, five, seven, ten, six, nine, twelve, eight, twenty, eleven, a hundred, forty, thirteen
[units]
days, weeks, hours, evenings, mornings, afternoons, nights, months
[spans]
12*{:numbers} {:units}
a whole week, a month, half a day, a long time, a year and a day
[treasures]
kite, drum, whistle, hat, lantern, ball, teddy bear, mitten, umbrella, marble, toy boat, button, book, blanket, doll
bell, flute, spinning top, scarf, paintbrush, yo-yo, toy train, feather, music box, pencil, ring, wooden horse
balloon, locket, rag rabbit, necklace, tin soldier, backpack, paper dragon, harmonica, magnet, teacup, seashell, key
watch, trumpet, slipper, snow globe, jump rope, telescope, purse, puppet, ribbon, lunch box, toy duck, tambourine
pocket knife, picture book, magnifying glass, bow tie, paper crown
[under]
under the bed, under the table, under the rug, under the stairs, under the pillow, under the sofa, under the porch
under the sink, under a heap of clothes, under the cat, under the mattress, under the old armchair
under the flowerpots, under the bathtub, under the doormat
[behind]
behind the door, behind the curtains, behind the stove, behind the clock, behind the bookcase, behind the shed
behind the laundry basket, behind the piano, behind the mirror, behind the radiator, behind the coats
behind the firewood, behind the flour bin
[inside]
in every drawer, in the cupboard, in the bathtub, in the teapot, in the attic, in the cellar, in the wood box
in the old trunk, in the cookie jar, in the umbrella stand, in the sewing basket, in all the coat pockets, in the oven
in the bread box, in the grandfather clock
[shabby]
old, broken, dusty, bent, surprised, rusty, forgotten, sticky, moldy, very old, torn, lonely, gray, empty
[clutter]
sock, biscuit, spider, newspaper, button, pencil, spoon, mouse, cheese, puzzle, mousetrap, fork, roller skate
calendar, umbrella, candle stub, postcard, feather duster, toothbrush, egg cup, shoelace, comb
[games]
play hide-and-seek; played: played hide-and-seek
play tag; played: played tag
play pirates; played: played pirates
build a sandcastle; played: built a sandcastle with nine towers
play leapfrog; played: played leapfrog
fly kites; played: flew kites
play marbles; played: played marbles
climb trees; played: climbed trees
play ball; played: played ball
race snails; played: raced snails
make mud pies; played: made forty mud pies
ride on the swings; played: rode on the swings
play chess; played: played chess
catch tadpoles; played: caught tadpoles and let them go
play school; played: played school with the hens
fish for stars; played: fished for stars
tell riddles; played: told riddles
roll down the hill; played: rolled down the hill
paint stones; played: painted stones
have a tea party; played: had a tea party
play circus; played: played circus on the lawn
walk on the wall; played: walked on the wall
throw snowballs; played: threw snowballs
look for dragons; played: looked for dragons
play shop; played: played shop with pebbles
sail paper boats; played: sailed paper boats
"""
