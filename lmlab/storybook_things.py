"""The words that belong to one plot of the storybook, and what comes of them: things lost, dishes, skills, fears.

The notation is that of `lmlab.storybook_words`.
"""

THINGS = """
[safe]
on the shelf above the bed, in a box with a lock, close at hand, on a piece of string, next to the pillow
in the top drawer, in a warm dry place, in a bag with two buckles, where everyone could see it, on a nail by the door
under a glass dome, in the safest corner of the house
[trails]
crumbs, feathers, muddy footprints, wet leaves, flower petals, cherry stones, nut shells, blue paint, sugar, sawdust
pebbles, bread crusts, glitter, ink spots, straw, apple peel
[borrowing]
show it to my children, look at it, draw a picture of it, play with it for a while, make it shine again
sleep beside it, tell it a secret, hold it just once, take it to a party, keep it out of the rain, see what was inside
dream about it, feel a little less alone, give it to the moon, find out how it worked, hear what it sounded like
[dishes]
apple pie; needs: apples, butter, cinnamon, flour, sugar
honey cake; needs: honey, eggs, flour, milk, almonds
pot of carrot soup; needs: carrots, salt, onions, cream, parsley
plum tart; needs: plums, sugar, butter, flour
chocolate cake; needs: cocoa, eggs, sugar, cream, butter
bowl of berry pudding; needs: berries, milk, sugar, vanilla
pumpkin pie; needs: pumpkins, nutmeg, cream, eggs, ginger
bowl of potato salad; needs: potatoes, onions, mustard, pickles
lemon pie; needs: lemons, sugar, eggs, butter
nut bread; needs: walnuts, flour, yeast, honey, salt
pot of vegetable stew; needs: turnips, beans, carrots, salt, pepper
cherry cake; needs: cherries, flour, eggs, milk
banana bread; needs: bananas, butter, flour, yeast
mushroom pie; needs: mushrooms, cheese, pepper, flour
bowl of rice pudding; needs: rice, milk, cinnamon, raisins
gingerbread house; needs: ginger, sugar, icing, flour, syrup
peach crumble; needs: peaches, oats, butter, sugar
pot of tomato soup; needs: tomatoes, basil, salt, cream
poppy seed cake; needs: poppy seeds, butter, eggs, milk
tower of pancakes; needs: eggs, milk, flour, maple syrup
onion tart; needs: onions, bacon, cream, thyme
birthday cake; needs: candles, marzipan, strawberries, eggs
[occasions]
was coming to visit, had a birthday, was ill in bed, had worked all day, was coming home from sea, needed cheering up
had a bad cold, was feeling sad, had been away for weeks, had won a medal, was moving into a new house
had broken a leg, was tired of porridge, had not laughed for days
[larders]
in the pantry, on every shelf, in the big blue jar, in the kitchen, in the baskets, at the shop, in the cellar
in the cupboard, behind the flour bin, in seven tins
[payments]
a song, a bunch of daisies, a funny story, a big hug, a basket of firewood, a drawing of a boat, a bag of chestnuts
three riddles, a jar of jam, a dance, a bucket of water, a new broom, a clean window, a kiss on the cheek
a somersault, a polite bow, a poem about soup, a cup of dew, a handful of feathers, two good jokes
[favors]
sweep the porch; did: swept the porch until it shone, swept the porch twice, swept the porch and the cat
feed the pigs; did: fed the pigs and scratched their ears, fed all nine pigs, fed the pigs with a silver spoon
chop the wood; did: chopped wood until the pile was high, chopped wood without a word
find my glasses; did: found the glasses in the sugar bowl, found the glasses on the dog, found the glasses in a shoe
milk the goat; did: milked the goat and was kicked only once, milked the goat while singing to it
paint the fence; did: painted the fence green, painted the fence and one of the hens
catch my goose; did: chased the goose around the barn and caught it, caught the goose with a blanket
wash the windows; did: washed the windows inside and out, washed the windows until birds flew into them
pick the beans; did: picked a whole basket of beans, picked every bean but one
mend my kettle; did: mended the kettle with a penny, mended the kettle and polished it too
water the roses; did: watered the roses and told them a story, watered the roses one by one
rock the baby; did: rocked the baby until both of them yawned, rocked the baby and sang about a bear
wind the clock; did: wound the clock until it struck thirteen, wound the clock and set it right
[cooking]
stirred, tasted, mixed and kneaded, chopped and peeled, whisked, hummed a tune, sprinkled and poured
rolled up both sleeves, spilled only a little, wiped the table, washed the spoons, counted to one hundred
lit the stove, read the recipe twice, weighed everything, put on an apron
[cooking2]
baked, waited, looked at the clock, licked the bowl, danced around the stove, set the table, burned one finger
tasted it again, opened the window, added a pinch of luck, told the cat to be patient, forgot the time
[smells]
of summer, so good that the neighbors came to look, like a holiday, wonderful, sweet and warm
like the best day of the year, better than ever before, of happiness, so fine that the cat began to sing, like a dream
of sugar and smoke, like a bakery in heaven
[skills]
whistle; fails: only a puff of air came out, it sounded like a leaky kettle, the dog laughed; tips: make your lips
  round like a cherry, blow as softly as the wind; wins: a clear note rang out over the roofs, every dog in town came
  running
swim; fails: the water went up {his} nose, {his} legs sank like stones; tips: kick like a frog, trust the water; wins:
  {he} glided across the lake like a swan, {he} swam all the way to the island
skate; fails: {his} feet slid away, {he} sat down hard on the ice; tips: bend your knees, look ahead and not down;
  wins: {he} flew over the ice like a swallow, {he} turned a perfect circle
juggle; fails: the oranges rolled under the sofa, one ball hit the lamp; tips: begin with two, look up and breathe;
  wins: five oranges danced in the air, not a single ball fell
ride a bicycle; fails: {he} landed in a hedge, the wheels went two ways at once; tips: pedal faster, look where you
  want to go; wins: {he} rode to the post office and back, the wind sang in the wheels
play the fiddle; fails: it screeched like an owl, the cat ran away; tips: hold the bow like a feather, listen before
  you play; wins: the whole street began to dance, the old fiddle sang like a bird
do a cartwheel; fails: {he} rolled into a flower bed, {he} forgot which way was up; tips: keep your legs straight,
  think of a windmill; wins: {he} turned like a wheel across the lawn, {he} did four in a row
climb a rope; fails: {his} hands slipped, {he} dangled like a sock on a line; tips: use your feet, rest at every knot;
  wins: {he} touched the ceiling, {he} rang the bell at the top
fly a kite; fails: it crashed into a bush, the string got tangled; tips: wait for the wind, run with your back to the
  breeze; wins: the kite soared above the steeple, the kite greeted the clouds
skip stones; fails: the stone went plop, the stone sank at once; tips: choose a flat one, throw low and spin it; wins:
  the stone hopped nine times, the stone jumped right across the pond
knit; fails: the yarn became one big knot, the sock had two heels; tips: count every stitch, go slowly; wins: a whole
  mitten was finished, {he} made a scarf as long as a fence
walk on stilts; fails: {he} fell into the hay, {he} could not take one step; tips: take small steps, keep moving;
  wins: {he} walked past the upstairs windows, {he} stepped right over the pig
dance; fails: {he} stepped on every toe in the room, {his} left foot forgot what to do; tips: listen to the drum,
  count to three and begin again; wins: {he} twirled until the lamps shook, everyone stopped to look
row a boat; fails: the boat went round and round, one oar floated away; tips: pull with both arms, keep the oars low;
  wins: the boat shot forward like a fish, {he} rowed around the whole lake
paint a horse; fails: it looked like a table, it had five legs; tips: begin with the big shapes, look at a real one;
  wins: the painted horse seemed to gallop, everybody knew at once what it was
tell a good joke; fails: nobody laughed, {he} forgot the ending; tips: wait before the last word, keep a straight
  face; wins: even the mayor laughed out loud, the whole room shook with laughter
tie a bow; fails: the laces made a nest, {he} tied both shoes together; tips: make two rabbit ears, pull gently at the
  end; wins: there was a bow like a butterfly, every shoe in the house was tied
jump rope; fails: the rope caught {his} foot, {he} tripped over nothing; tips: hop like a sparrow, listen to the rope;
  wins: {he} jumped ninety times, the rope hummed in the air
[tries]
once, twice, three times, ten times, all morning, again and again, a hundred times, until supper
standing up and sitting down, before breakfast, in the rain, with closed eyes, for {:spans}
[fears]
thunder; signs: the thunder rolled and the windows shook, a loud rumble came over the roof; truths: a cloud with a bad
  cold, noise that could not bite, the sky moving its furniture
the dark; signs: the candle went out, something seemed to move in the corner; truths: a coat on a hook, the cat
  chasing its tail, the shadow of a chair
the cellar; signs: a knock came from below, something scratched under the stairs; truths: a potato rolling off the
  pile, two mice playing catch, a dripping tap
the attic; signs: the floor creaked overhead, something sighed behind the trunk; truths: an old rocking chair, a nest
  of swallows, the wind in the chimney
ghosts; signs: something white floated past the window, a pale shape waved from the garden; truths: a shirt on the
  line, a sheet in the pear tree, the neighbor in a nightgown
wolves; signs: a long howl came from the hills, two eyes shone in the bushes; truths: the dog next door, a cat with a
  fish, {a :looks} {:pets} looking for supper
monsters; signs: something growled under the bed, a crooked shadow crept along the wall; truths: a hungry puppy, a
  pile of laundry, {a :looks} {:pets} that snored
the old well; signs: a voice answered from the deep, the bucket moved all by itself; truths: an echo, a frog taking a
  bath, the wind playing with the rope
storms; signs: the trees bent and moaned, the shutters banged in the night; truths: the wind in a hurry, a loose nail,
  a branch that wanted to come in
the forest at night; signs: twigs snapped behind the hedge, the trees whispered to each other; truths: a hedgehog out
  for a walk, a deer eating fallen apples, leaves dancing in a ring
witches; signs: a cackle came down the chimney, a broom flew past the window; truths: the hens next door, the chimney
  sweep at work, {a :looks} {:pets} with a cough
robbers; signs: the gate squeaked at midnight, somebody was whispering in the yard; truths: the milkman, two sparrows
  in love, {his} {:family} looking for {:pocket_nouns2}
[pocket_nouns2]
the keys, a lost shoe, the cat, the moon, a snack, the newspaper
[hiding]
4*{:under}
3*{:behind}
in the wardrobe, under three blankets, inside a big basket
[trembling]
trembled like a leaf, did not make a sound, held {his} breath, closed both eyes, counted to ten, hummed to be brave
bit {his} lip, hugged a pillow, wished for morning, thought of {:dreams}, shook from head to toe
listened with both ears
[lights]
a lantern, a candle, a night light, a cup of warm milk, an old lamp, a plate of cookies, a broom, a torch, a match
a box of fireflies, a frying pan, an umbrella
[lights2]
a long spoon, a tin helmet, a blanket, a whistle, a bag of peppermints, a feather, a walking stick, a rope, a pillow
[lonely]
lonely, bored, left out, all alone, unhappy, rather blue, sad, forgotten, invisible, useless
[mishaps]
fell into the mud; fixes: washed it clean, scrubbed it until it shone
flew over the wall; fixes: climbed over the wall to fetch it, asked the neighbor to throw it back
fell into the stream; fixes: fished it out with a stick, ran after it to the next bridge
broke in two; fixes: glued it back together, tied it together with string
landed in a thorn bush; fixes: picked it out with long spoons, pulled it out with a rake
rolled down a drain; fixes: pulled it up with a magnet, fished it out with a bent hook
cracked; fixes: mended it with tape, painted a flower over the crack
got stuck in a tree; fixes: shook the tree until it came down, borrowed a ladder and brought it down
slid under the barn; fixes: crawled in after it, pushed it out with a broom
was carried off by a goose; fixes: traded it for a bun, chased the goose around the yard
dropped into the soup; fixes: ladled it out, ate the soup to get it back
bounced onto the roof; fixes: asked a pigeon to push it down, reached it with a very long pole
[proverbs]
a friend is worth more than any toy, two can share what one cannot hold, sorry is a small word that opens big doors
a thing is twice as nice when it is shared, whoever wins a quarrel loses a friend, anger is a poor playmate
it is never too late to be kind, half a cake with a friend is better than a whole one alone
one warm word can melt a lot of ice, a good heart knows how to give, things break but friends need not
pulling only makes arms longer, nobody ever hugged a quarrel, the wiser one lets go first
[turns]
one day each, morning for one and evening for the other, week by week, and nobody kept count
and sometimes they forgot whose turn it was, fair and square, on even days and odd days, by the kitchen clock
from full moon to full moon
[poor]
poor, tiny, frightened, shivering, wet, brown, very young, gray, hungry, speckled, small, trembling, white, lost
muddy, unlucky
[victims]
kitten, chick, lamb, baby owl, hedgehog, squirrel, mouse, duckling, little bat, young crow, rabbit, piglet, kid goat
robin, foal, swan, dormouse, toad, dragonfly, fox cub, bear cub
[plights]
stuck high up in a tree; tools: ladder, long rope, fishing net; acts: climbed up and carried it down, brought it
  safely to the ground
trapped at the bottom of a hole; tools: bucket on a rope, long plank, basket; acts: lifted it out, helped it climb out
caught in a fishing net; tools: pair of scissors, sharp shell, bread knife; acts: cut it free, opened the net knot by
  knot
tangled in a thorn bush; tools: pair of thick gloves, garden rake, hedge trimmer; acts: bent the thorns aside, set it
  free
sitting on a rock in the rushing river; tools: small raft, fishing rod, long branch; acts: brought it back to dry
  land, pulled it to the bank
shut in an empty barrel; tools: hammer, crowbar, kitchen spoon; acts: opened the lid, rolled the barrel open
stuck in the mud; tools: wooden board, shovel, thick stick; acts: pulled it out, dug it out
frozen with fear on the railway track; tools: loud bell, red flag, big lantern; acts: stopped the train just in time,
  warned the driver of the train
locked in a garden shed; tools: rusty key, piece of wire, hairpin; acts: opened the door, let it out
wrapped up in kite string; tools: small knife, pair of tweezers, magnifying glass; acts: undid every loop, freed one
  leg after another
[cries]
a small cry, a sad little voice, something whimper, a faint squeak, somebody call for help, a rustling sound
a tiny sob, three short knocks, a very quiet peep, somebody sneeze
[places_of_tools]
behind the shed, in the barn, under the porch, at home, next to the well, in the school cellar, on the neighbor's wall
in the boathouse, beside the henhouse
[dangers]
the fog was thick, a storm came up, the path was covered with snow, it grew dark in the forest, the ice began to crack
the tide came in, all the signs had fallen down, the lamp went out, the bridge was washed away
[clues]
map, letter, key with a tag, note, paper boat, postcard, riddle, diary, scroll, drawing, telegram, parchment, recipe
star chart
[ages]
old, yellow, crumpled, faded, mysterious, dusty, torn, secret, folded, tiny, burnt, stained, water-stained, royal
half-eaten
[hiding_places]
in a bottle, inside a clock, under a loose stone, in a library book, between two floorboards
in the pocket of an old coat, in a bird's nest, behind a painting, in the lining of a hat, inside a pumpkin
at the bottom of a trunk, in a teapot, under a sleeping hen, inside a loaf of bread, in a hollow walking stick
[ages2]
hard to read, as thin as a leaf, covered with spots, warm to the touch, older than the town, written in code
[guards]
goat, goose, troll, giant, bull, ram, peacock, knight, wizard, rooster, sphinx, crocodile, dwarf, scarecrow, sentry
ogre, swan
[guard_moods]
grumpy, sleepy, bored, very large, suspicious, hungry, purple, lonely, stern, growling, one-eyed, snoring, whistling
bad-tempered
[boxes]
box, chest, sack, jar, barrel, basket, suitcase, pot, trunk, tin, hatbox, crate
[loot]
silver coins; uses: bought a new bell for the school, paid for a bridge, bought shoes for everyone
flower seeds; uses: sowed them along every road, planted a garden for the whole town
old books; uses: read a story aloud every evening, opened a small library
glass marbles; uses: gave one to every child in the street, filled a whole window with light
chocolate; uses: shared it with the whole street, invited all the neighbors
colored lanterns; uses: hung them in all the trees, lit up the whole street
gold buttons; uses: sewed one on every coat in town, traded them for a pony
letters; uses: carried each one to the right door, read them aloud by the fire
blue paint; uses: painted the gray wall with birds, painted the town hall door
music boxes; uses: wound one up whenever somebody was sad, gave a concert in the square
fireworks; uses: lit up the sky on New Year, saved them for the summer feast
pearls; uses: gave them back to the sea, made a necklace for {his} {:family}
toy animals; uses: built a zoo in the schoolyard, sent them to the children in the hospital
hats; uses: gave one to every scarecrow, wore a different one each day
[plants]
pumpkin; uses: made soup for the whole village, carved it into a coach
sunflower; uses: gave the seeds to the birds, measured themselves against it every week
bean; uses: climbed up to look at the clouds, picked beans until the baskets were full
cabbage; uses: made enough salad for a hundred rabbits, let the caterpillars have the outer leaves
tomato; uses: cooked the reddest sauce in the land, sold the rest at the market
melon; uses: cut it into fifty slices, ate it in the shade
carrot; uses: needed six friends to pull it out, fed three hungry horses
turnip; uses: pulled and pulled until it came out, boiled it in the biggest pot in town
rose; uses: tied a bunch for every door, made a bottle of sweet perfume
apple; uses: hung a swing from the tree, baked apples every autumn
cherry; uses: wore cherries on their ears, ate until their lips were red
lemon; uses: sold lemonade by the road, made the sourest pie in the world
cucumber; uses: filled forty jars with pickles, used it as a bench
tulip; uses: gave one to everybody with a birthday, put a vase in every window
potato; uses: had fried potatoes for a month, hollowed it out and sailed away in it
radish; uses: sliced it with a saw, won first prize at the fair
poppy; uses: painted it in every color of red, hid in its shade at noon
[garden_spots]
behind the house, beside the gate, in a flower pot, next to the well, under the kitchen window, in an old boot
at the sunny end of the garden, in a cracked teapot, near the fence, between two stones, in a leaky bathtub
along the south wall
[pests]
snails; harms: nibbled the leaves, left silver trails on it; fixes: carried them to the far meadow, laid a ring of
  sand around it
crows; harms: pecked at the stem, sat on it and laughed; fixes: built a scarecrow in {a :colors} {:clothes}, sang so
  loudly that they left
frost; harms: turned the leaves white, bit the youngest leaves; fixes: wrapped it in a blanket, kept a candle burning
  all night
ants; harms: marched up and down the stalk, built a road across it; fixes: left a trail of sugar to the other side of
  the road, asked them very politely to leave
weeds; harms: grew all around it, took all the light; fixes: pulled up every single one, dug and raked for hours
goats; harms: ate half of it, looked at it hungrily; fixes: put up a fence, gave them the newspaper instead
caterpillars; harms: chewed holes in the leaves, had a feast; fixes: moved each one to the nettles, waited until they
  were butterflies
strong winds; harms: bent it to the ground, tore off a leaf; fixes: tied it to a stick, stood in front of it until
  evening
moles; harms: dug tunnels under it, tickled the roots; fixes: played the trumpet until they moved, offered them the
  neighbor's lawn
[big_things]
a washtub, a pony, the chimney, a wagon, a church door, a cow, the mayor, a rowing boat, a wardrobe, a hay cart
the moon, two grown pigs, a rain barrel, a piano, a small hill, a bathtub, three geese, an armchair
[builds]
treehouse; parts: old boards, rope, nails; mishaps: the floor fell out, it leaned to one side; uses: slept under the
  leaves, watched the road from above
raft; parts: logs, barrels, string; mishaps: it came apart in the water, it turned around in circles; uses: sailed to
  the island, floated down the stream
snow fort; parts: snow, icicles, frozen twigs; mishaps: the wall caved in, the sun melted the roof; uses: threw
  snowballs, drank cocoa behind the thick walls
bridge; parts: planks, stones, thick branches; mishaps: it broke in the middle, it was too short; uses: walked back
  and forth, fished from the railing
doghouse; parts: boxes, straw, red paint; mishaps: the door was too small, the dog ate the roof; uses: barked at the
  moon, took a nap inside
flying machine; parts: umbrellas, feathers, bicycle wheels; mishaps: it landed in the pond, one wing fell off; uses:
  flew over the henhouse, glided down the hill
tent; parts: sheets, poles, clothes pegs; mishaps: the wind blew it down, it fell on the cat; uses: told stories
  inside, listened to the rain on the roof
wagon; parts: crates, wheels, wire; mishaps: a wheel rolled away, it tipped over; uses: rode down the lane, gave rides
  to the hens
snowman; parts: snow, coal, carrots; mishaps: the head rolled off, a goat ate the nose; uses: danced around it, had a
  long talk with it
puppet theater; parts: curtains, socks, cardboard; mishaps: the curtain would not open, the stage fell over; uses: put
  on one play after another, made the whole street laugh
birdhouse; parts: bark, twigs, glue; mishaps: the roof came off, no bird could get in; uses: counted the birds that
  moved in, listened to the young birds
windmill; parts: paper, sticks, tin cans; mishaps: it would not turn, it spun so fast that it broke; uses: ground corn
  for the hens, watched it turn in the breeze
sandcastle; parts: wet sand, shells, driftwood; mishaps: a wave washed it away, a crab moved in; uses: played king and
  queen, waited for the tide
rocket; parts: pots, pipes, silver foil; mishaps: it only coughed, it flew sideways into the hedge; uses: counted down
  from ten, planned a trip to the moon
see-saw; parts: beams, a log, some screws; mishaps: it squeaked terribly, one end broke off; uses: went up and down,
  took turns with the sheep
[gifts]
basket of pears, warm shawl, jar of honey, pot of soup, bunch of tulips, loaf of bread, bottle of ink
pair of slippers, bag of tea, birthday cake, woolen blanket, box of candles, picture, kettle, cheese, walking stick
songbook, sack of flour, apple tart, cuckoo clock, goose feather, box of chocolates, rocking chair, pillow
jar of pickles, pair of glasses, cactus, hot-water bottle, flowerpot, ham
[distances]
on the other side of the hill, behind the seven bridges, far away in {:towns}, at the end of the valley
across the river, beyond the dark forest, three villages away, high on the mountain, where the road ended
near {:towns}, beyond the last windmill, two days from {:towns}, out on the cliffs
[obstacles]
the bridge was gone; helpers: beaver, ferryman, carpenter; fixes: laid a log across the water, built a new one in no
  time
the fog came down like a curtain; helpers: lamplighter, firefly, lighthouse keeper; fixes: showed the way with a small
  light, led {him} along by the hand
a fallen tree blocked the road; helpers: woodcutter, bear, elephant; fixes: pushed it aside, lifted {him} over it
{he} lost the way; helpers: mail carrier, shepherd, crow; fixes: pointed out the right path, drew a map in the sand
it began to pour; helpers: gardener, mole, umbrella maker; fixes: held a big leaf over {his} head, offered {him} a dry
  place
the snow was too deep to walk; helpers: reindeer, skier, milkman; fixes: pulled {him} along on a sled, cleared a path
a bull stood in the middle of the path; helpers: farmer, goose, hen; fixes: led it away, chased it into the field
the last train was gone; helpers: coachman, pilot, bicycle rider; fixes: took {him} along, made room for one more
the river was too wide; helpers: turtle, fisherman, swan; fixes: carried {him} across, brought {him} to the other bank
the hill was too steep; helpers: mule, mountain goat, tinker; fixes: let {him} ride along, pulled {him} up with a rope
{his} left shoe fell apart; helpers: cobbler, spider, tailor; fixes: sewed it together, tied it up with a thread
a gate was locked; helpers: locksmith, mouse, night watchman; fixes: opened it with a hairpin, found a hole in the
  fence
night fell much too early; helpers: owl, glowworm, stargazer; fixes: read the way from the stars, stayed close until
  morning
a swarm of wasps filled the lane; helpers: beekeeper, badger, spider; fixes: knew another way, chased them off with
  smoke
[lovely]
lovely, fine, wonderful, beautiful, splendid, thoughtful, useful, perfect, marvelous, magnificent, surprising
charming, enormous, delightful
[events]
boat race, sack race, sled race, running race, egg-and-spoon race, bicycle race, raft race, swimming race, barrel race
pony race, wheelbarrow race, lantern race, roller-skate race, ski race, balloon race, scooter race, stilt race
soapbox race, three-legged race, turnip race
[prizes]
golden cup, giant cake, silver medal, blue ribbon, big drum, chocolate crown, new bicycle, marzipan pig, brass trumpet
ticket to the circus, ham, crate of oranges, red balloon, velvet hat, laurel wreath, telescope, goose with a bow
bag of almonds, picture of the mayor
[rivals_she] he=she him=her his=her
Bianca the hare, Ursula the goose, Kitty the weasel, Olga the goat, Carmen the cat, Lola the zebra, Inga the magpie
Wilma the ostrich, Gloria the mare, Edna the lynx
[rivals_he] he=he him=him his=his
Rollo the hare, Bert the ram, Magnus the stork, Hector the horse, Igor the rat, Duke the greyhound, Boris the rooster
Cosmo the cat, Lenny the lizard, Prince the pug
[rivals]
@rivals_she, @rivals_he
[boasts]
as fast as the wind, taller than everyone else, very sure of winning, stronger than two, the champion of last year
bragging to the crowd, warming up with a yawn, dressed in shiny new clothes, polishing a row of medals
signing pictures for the crowd, as proud as a peacock, already practicing a victory speech
combing {rival.his} whiskers
[slownesses]
slow, small, clumsy, short, dreamy, young, nervous, late, polite, sleepy
[troubles]
fell into a ditch; fixes: pulled {rival.him} out, held out a branch
got caught in a net; fixes: untied every knot, cut {rival.him} loose
lost a shoe; fixes: found it in the mud, gave {rival.him} one of {his} own
took the wrong road; fixes: ran after {rival.him} to show the right one, whistled until {rival.he} turned around
twisted an ankle; fixes: carried {rival.him} on {his} back, let {rival.him} lean on {his} arm
bumped into a tree; fixes: put a cold cloth on the bump, helped {rival.him} up again
was stung by a wasp; fixes: put mud on the sting, blew on it until it stopped hurting
sank into the swamp; fixes: threw {rival.him} a rope, pulled until the swamp let go
got dust in both eyes; fixes: wiped them with a clean cloth, led {rival.him} on by the arm
"""
