"""The sentences of the storybook, plot by plot. `lmlab.storybook_grammar` explains the notation of slots.

A section has one alternative a line; a leading number is its weight. An indented line goes on with the one above.
"""

PLOTS = """
[Story]
{Opening} {Habit?}{Plot}
[Plot]
{Lost}
{Bake}
{Learn}
{Fear}
{Friend}
{Quarrel}
{Rescue}
{Treasure}
{Grow}
{Build}
{Errand}
{Race}
[Opening]
6 Once upon a time, there was {a :traits} {kind:kind} named {hero:kind.names} who lived {:homes}.
4 Once there was {a :traits} {kind:kind} called {hero:kind.names} who loved {:pastimes}.
4 {hero:children} was {a :traits} {kind:hero.kind} who lived {:homes}.
3 In {a :sizes} {:dwellings} {:homes} lived {a :traits} {kind:kind} named {hero:kind.names}.
3 The {:traits} {kind:kind} who lived {:homes} was called {hero:kind.names}.
3 The {kind:kind} in this story is called {hero:kind.names} and {:virtues}.
2 {hero:children} was {a :traits} {kind:hero.kind} with {a :colors} {:clothes} and {a :looks} {:pets}.
2 The {:sizes} {:dwellings} {:homes} was the home of {a :traits} {kind:kind} named {hero:kind.names}.
2 Everyone in {:towns} knew {hero:children}, the {:traits} {kind:hero.kind} who loved {:pastimes}.
2 The people of {:towns} still tell stories about {a :traits} {kind:kind} named {hero:kind.names}.
2 Long ago, {:homes}, lived {a :traits} {kind:kind} whose name was {hero:kind.names}.
2 There once was {a kind:kind} named {hero:kind.names} who {:virtues} and loved {:pastimes}.
1 No {kind:kind} in {:towns} was as {:traits} as {hero:kind.names}.
[Habit]
3 Every morning, {he} {:habits}.
2 The {scene:scenery} {scene.does}.
{^his} best friend was {a :looks} {:pets} named {:pet_names}.
{^he} always wore {a :colors} {:clothes}, even {:even_times}.
In {his} pocket there was always {a :pocket_adjectives} {:pocket_nouns}.
At night, {he} liked to {:nightly}.
{^he} dreamed of {:dreams} almost every night.
{^he} {:virtues}, just like {his} {:family}.
{^he} shared a room with {a :looks} {:pets} that snored and {a :looks} {:pets} that did not.
[Lost]
3 {LostWant} {LostSearch} {LostTip} {LostFound} {LostClose}
2 {LostWant} {LostSearch} {LostTrail} {LostBorrowed} {LostClose}
[LostWant]
3 One {:moments}, {hero} could not find {his} {color:colors} {thing:treasures} anywhere.
2 One {:moments}, {hero} woke up and saw that {his} {color:colors} {thing:treasures} was gone.
2 On the way home one {:moments}, {hero} lost {his} {color:colors} {thing:treasures}.
2 One {:moments}, {hero} had {a color:colors} {thing:treasures} in the morning and none in the evening.
What {he} loved most was {a color:colors} {thing:treasures}, but one {:moments} it was gone.
"Who has seen my {color:colors} {thing:treasures}?" {:called} {hero} one {:moments}.
[LostSearch]
2 {^he} looked {:under} and {:behind}, but the {thing} was not there.
2 {^he} searched {:inside} and found only {a :shabby} {:clutter}.
First {he} looked {:inside}, then {he} looked {:behind}, but there was no {thing}.
"Where can my {thing} be?" {:called} {hero}, looking {:under}.
{hero} asked {his} {:family}, but nobody had seen the {thing}.
{^he} felt {:sad}, because there was no other {thing} like it in the world.
There was {a :shabby} {:clutter} {:under} and {a :shabby} {:clutter} {:behind}, but no {thing}.
[LostTip]
3 Then {a :manners} {helper:helpers} {helper.came}. "Go to the {place:places} and look {spot:place.spots},"
  {helper.said} the {helper}.
2 "I saw something {color} near the {place:places}, {spot:place.spots}," said {a :manners} {helper:helpers}.
"Your {thing} is at the {place:places}, {spot:place.spots}," said {a :manners} {helper:helpers} who {helper.came}.
For {:snacks}, {a :manners} {helper:helpers} told {him} to go to the {place:places} and look {spot:place.spots}.
[LostFound]
2 {hero} ran to the {place}, and there, {spot}, was the {color} {thing}. {Thanks}
2 So {hero} hurried to the {place} and looked {spot}, and the {helper} was right. {Thanks}
Together they went to the {place}, and {spot} they found the {color} {thing}. {Thanks}
At the {place}, {spot}, something {color} was waiting, and it was the {thing}. {Thanks}
[Thanks]
3 "Thank you!" {:called} {hero}, and gave the {helper} {:snacks}.
2 {hero} thanked the {helper} and {:joys}.
{^he} was so {:happy} that {he} gave the {helper} {:snacks}.
The {helper} was given {:snacks} and {a :colors} {:clothes} for helping.
[LostTrail]
2 But {a :manners} {helper:helpers} had left a trail of {:trails}, and it led to the {place:places}.
Then {he} saw a trail of {:trails} that went all the way to the {place:places}. {LostTrailOwner}
Outside there were {:trails}, and {he} followed them to the {place:places}. {LostTrailOwner}
[LostTrailOwner]
2 There {he} met {a :manners} {helper:helpers}.
Somebody was humming there, and it was {a :manners} {helper:helpers}.
[LostBorrowed]
The {helper} sat {place.spots} and held the {thing}. {LostSorry}
{^place.spots}, the {helper} had fallen asleep with the {thing}. {LostSorry}
The {thing} lay {place.spots}, and the {helper} turned red. {LostSorry}
[LostSorry]
"I only wanted to {:borrowing}," {helper.said} the {helper}, and {hero} was not angry at all.
"Please forgive me, I wanted to {:borrowing}," {helper.said} the {helper}.
The {helper} gave it back at once, and {hero} shared {:snacks} with the poor thing.
"You may keep it until {:until_times}," said {hero}, for the {helper} looked {:sad}.
[LostClose]
2 From that day on, {hero} kept the {color} {thing} {:safe}.
After that, the {thing} never left {his} side again.
That night, {hero} slept with the {color} {thing} under the pillow and dreamed of {:dreams}.
And every time {he} saw the {color} {thing}, {he} thought of the {helper} near the {place}.
Now the {thing} lay {:safe}, and the {helper} often came to visit it.
[Bake]
{BakeWant} {BakeLack} {BakeHelp} {BakeCook} {BakeEnd}
[BakeWant]
3 One {:moments}, {hero} wanted to make {a dish:dishes} for {his} {kin:family}.
2 {^his} {kin:family} {:occasions}, so {hero} decided to make {a dish:dishes}.
{^his} {kin:family} felt {:sad} one {:moments}, so {hero} wanted to make {a dish:dishes}.
Nothing was finer to {hero} than {a dish:dishes} shared with {his} {kin:family}.
[BakeLack]
2 But {he} had no {lack:dish.needs}.
2 {^he} looked {:larders}, but could not find any {lack:dish.needs}.
"How can I make it without {lack:dish.needs}?" {:called} {hero}.
But the {:pets} had eaten all the {lack:dish.needs}.
Instead of {lack:dish.needs}, there was only {a :shabby} {:clutter} {:larders}.
[BakeHelp]
3 {folk:folk} had plenty. "You may have {lack} if you {favor:favors}," said {folk}, so {hero} {favor.did}.
2 So {hero} went to {folk:folk}, who gave {him} {lack} for {:payments}.
{folk:folk} had some {lack} and asked for nothing but {:payments}.
"I will trade {lack} for {:payments} and {:payments}," said {folk:folk}, and {hero} agreed.
[BakeCook]
2 Then {hero} {:cooking} and {:cooking2}, and soon the kitchen smelled {:smells}.
Back at home, {he} {:cooking} until the {dish} was done.
Before long, the {dish} stood on the table and smelled {:smells}.
While the {scene:scenery} {scene.does}, {hero} {:cooking} and {:cooking2}.
[BakeEnd]
2 "This is the best {dish} in the world," said {his} {kin}. {BakeClose}
{^his} {kin} had three helpings and felt {:happy}. {BakeClose}
When {his} {kin} tasted the {dish}, {kin.he} {:joys}. {BakeClose}
[BakeClose]
They saved a little for {folk}, who had given the {lack}.
{folk} was invited too, and they all ate until {:until_times}.
After that, {hero} never forgot to buy {lack} again.
And {hero} was {:happy}, for {his} {kin} was smiling.
That night, {hero} dreamed of {a dish} as big as {:big_things}.
[Learn]
{LearnWant} {LearnFail} {LearnHelp} {LearnWin} {LearnClose}
[LearnWant]
2 More than anything, {hero} wanted to {skill:skills}.
2 One {:moments}, {hero} decided to learn to {skill:skills}.
All {his} friends could {skill:skills}, but {hero} could not.
{^his} {:family} could {skill:skills}, and {hero} wanted to do it too.
One {:moments}, {hero} saw {folk:folk} {skill:skills} and thought of nothing else for {:spans}.
[LearnFail]
2 {^he} tried {:tries}, but {skill.fails}.
The first time {he} tried, {skill.fails}, and {he} felt {:sad}.
Every time {he} tried, {skill.fails}.
"I will never learn to {skill}," {:called} {hero}, because {skill.fails}.
[LearnHelp]
3 Then {a :manners} {helper:helpers} {helper.came}. "You must {skill.tips}," {helper.said} the {helper}.
2 "Try to {skill.tips}," said {a :manners} {helper:helpers} who was watching.
"Nobody can {skill} on the first day, so {skill.tips}," said {a :manners} {helper:helpers}.
It was {a :manners} {helper:helpers} who gave {him} {:snacks} and said, "You must {skill.tips}."
[LearnWin]
2 So {hero} practiced for {:spans}, and at last {skill.wins}.
{hero} practiced until {:until_times}, and then {skill.wins}.
{hero} did just that, and suddenly {skill.wins}.
[LearnClose]
2 "I can {skill}!" {:called} {hero}, and {:joys}.
The {helper} was {:happy} and asked to learn to {skill} too.
From that day on, no {kind} could {skill} better than {hero}.
{^he} gave the {helper} {:snacks}, and they laughed about it until {:until_times}.
And if you ever want to {skill}, you only need to ask {hero}.
[Fear]
{FearName} {FearSign} {FearHide?}{FearLook} {FearClose}
[FearName]
3 {hero} was not afraid of much, but {he} was afraid of {fear:fears}.
2 There was only one thing that {hero} did not like, and that was {fear:fears}.
By day {hero} was brave, but at night {he} was afraid of {fear:fears}.
{^his} {:family} could not understand why {hero} was so afraid of {fear:fears}.
[FearSign]
2 One {:weather} night, {fear.signs}.
Then, late one {:weather} evening, {fear.signs}.
{^he} had just begun to dream of {:dreams} when {fear.signs}.
[FearHide]
2 {hero} hid {:hiding} and {:trembling}.
"Help!" {:called} {hero}, and {he} {:trembling}.
{^he} crept {:hiding} and {:trembling}.
[FearLook]
3 {^his} {kin:family} came with {:lights}. "Let us go and see," said the {kin}, and it was only {truth:fear.truths}.
2 But {a :manners} {helper:helpers} {helper.came}. "Look again," {helper.said} the {helper}, and there was only
  {truth:fear.truths}.
Then {hero} took {:lights} and {:lights2} and went to look, and what {he} found was {truth:fear.truths}.
Hand in hand with {his} {kin:family}, {he} went to look, and it was nothing but {truth:fear.truths}.
[FearClose]
2 {hero} laughed and laughed, and was never afraid of {fear} again.
From then on, {hero} went to bed without fear and dreamed of {:dreams}.
"So that is all!" {:called} {hero}, and {:joys}.
Now whenever somebody is afraid of {fear}, {hero} tells them what it was that night.
{^he} felt {:happy}, and {fear} seemed much smaller after that.
[Friend]
{FriendWish} {FriendMeet} {FriendShy?}{FriendPlay} {FriendClose}
[FriendWish]
2 But {hero} felt {lonely:lonely}, for there was nobody to {game:games} with.
2 One {:moments}, {hero} wanted to {game:games}, but everyone was busy and {he} felt {lonely:lonely}.
It is hard to {game:games} alone, and {hero} often felt {lonely:lonely}.
"Will nobody {game:games} with me?" {:called} {hero}, who felt {lonely:lonely}.
[FriendMeet]
2 Then {he} went to the {place:places}, and {place.spots} sat {a :poor} {friend:newcomers} named {pal:friend.names}.
2 One {:moments}, {a :traits} {friend:newcomers} named {pal:friend.names} moved into the house by the {place:places}.
Down at the {place:places}, {place.spots}, {he} met {a :traits} {friend:newcomers} called {pal:friend.names}.
[FriendShy]
2 At first, neither of them knew what to say.
{pal} was shy and looked at the ground.
{hero} was so shy that {he} {:trembling}.
{pal} had never seen {a kind} with {a :colors} {:clothes} before.
{pal} wore {a :colors} {:clothes} and {a :colors} {:clothes2}, and felt {:sad}.
[FriendPlay]
2 "Do you like to {game}?" asked {hero}, and they {game.played} until {:until_times}.
{hero} shared {:snacks} with {pal}, and soon they {game.played} together.
"I know how to {game} too," said {pal}, so they {game.played} until {:until_times}.
{hero} smiled, {pal} smiled back, and while the {scene:scenery} {scene.does}, they {game.played}.
[FriendClose]
2 From that day on, {hero} and {pal} were the best of friends.
After that, {hero} was never {lonely} again, because {pal} was always near.
"Come and {game} tomorrow," said {pal}, and {hero} {:joys}.
Now the {friend} and the {kind} meet near the {place} every day.
{hero} gave {pal} {a :pocket_adjectives} {:pocket_nouns} to keep, and {pal.he} was {:happy}.
[Quarrel]
{QuarrelWish} {QuarrelFight} {QuarrelAdvice} {QuarrelFix} {QuarrelClose}
[QuarrelWish]
2 One {:moments}, {hero} and {his} friend {pal:pals} found {a color:colors} {thing:treasures} near the {place:places}.
2 {hero} and {pal:pals} were friends, but both wanted the same {color:colors} {thing:treasures}.
{^his} {:family} gave {him} {a color:colors} {thing:treasures}, and {his} friend {pal:pals} wanted it too.
The {color:colors} {thing:treasures} in the window of {folk:folk} was the dream of {hero} and also of {pal:pals}.
[QuarrelFight]
2 "It is mine!" {:called} {hero}, and they pulled until the {thing} {mishap:mishaps}.
"No, give it to me!" {:called} {pal}, and in the quarrel the {thing} {mishap:mishaps}.
They shouted and tugged, and all at once the {thing} {mishap:mishaps}.
[QuarrelAdvice]
3 {hero} went home and felt {:sad}. "{^:proverbs}," said {his} {kin:family}.
2 "{^:proverbs}," said {folk:folk}, who had seen it all.
Then it was very still, and {hero} felt {:sad}.
{pal} began to cry, and {hero} felt {:sad}.
The {scene:scenery} {scene.does}, but {hero} and {pal} felt {:sad}.
[QuarrelFix]
2 So {hero} said sorry to {pal}, and together they {mishap.fixes}.
"I am sorry," said {pal}, and then they both {mishap.fixes}.
So {he} gave {pal} {:snacks}, and side by side they {mishap.fixes}.
[QuarrelClose]
2 After that, they took turns with the {color} {thing}, {:turns}.
{hero} and {pal} never fought about the {thing} again.
And the {color} {thing} was twice as much fun, because now it belonged to two.
In the end, they gave the {thing} to {a :traits} {:newcomers} and went off to {:games}.
[Rescue]
{RescueHear} {RescueSee} {RescueTool} {RescueAct} {RescueClose}
[RescueHear]
2 One {:moments}, {hero} heard {:cries} near the {place:places}.
On the way to the {place:places} one {:moments}, {hero} heard {:cries}.
{hero} played near the {place:places} one {:moments} and heard {:cries}.
The {scene:scenery} {scene.does} when {hero} heard {:cries} near the {place:places}.
[RescueSee]
3 It was {a :poor} {victim:victims}, {plight:plights}.
There, {plight:plights}, was {a :poor} {victim:victims}.
"Please help me," {:called} {a :poor} {victim:victims}, {plight:plights}.
[RescueTool]
2 {hero} could not reach it, but {he} remembered {a tool:plight.tools} {:places_of_tools}.
"Do not be afraid," {:called} {hero}, running off to find {a tool:plight.tools}.
What {he} needed was {a tool:plight.tools}, and {folk:folk} had one {:places_of_tools}.
{hero} thought hard, and then {he} borrowed {a tool:plight.tools} from {a :manners} {:helpers}.
[RescueAct]
3 With the {tool}, {he} {plight.acts}.
Carefully, {hero} took the {tool} and {plight.acts}.
It took until {:until_times}, but with the {tool} {he} {plight.acts}.
[RescueClose]
2 Later, when {:dangers}, it was the {victim} that led {hero} safely home.
The {victim} was {:happy}, and it stayed with {hero} for {:spans}.
{hero} gave the {victim} {:snacks} and called it {:pet_names}.
Ever since, {he} visits the {victim} near the {place} with {:snacks}.
And from that day on, {hero} never went out without {a tool}.
[Treasure]
{TreasureFind} {TreasureRead} {TreasureGuard?}{TreasureOpen} {TreasureClose}
[TreasureFind]
2 One {:moments}, {hero} found {a :ages} {clue:clues} {:hiding_places}.
{^:hiding_places}, {hero} found {a :ages} {clue:clues} one {:moments}.
One {:moments}, {his} {:family} gave {hero} {a :ages} {clue:clues}.
The {clue:clues} that {hero} found {:hiding_places} one {:moments} was {:ages} and {:ages2}.
[TreasureRead]
2 "Go to the {place:places} and look {spot:place.spots}," it said.
"What you seek is near the {place:places}, {spot:place.spots}," said the words on the back.
On it were a picture of the {place:places} and the words "{spot:place.spots}" in {:colors} ink.
[TreasureGuard]
2 But {a mood:guard_moods} {guard:guards} stood in the way and wanted {:snacks}.
On the path {he} met {a mood:guard_moods} {guard:guards} and had to pay with {:payments}.
"Nobody may pass," said {a mood:guard_moods} {guard:guards}, until {hero} gave it {:snacks}.
[TreasureOpen]
2 At the {place}, {spot}, stood {a :colors} {:boxes} full of {loot:loot}.
{hero} dug {spot} until {:until_times}, and out came {a :colors} {:boxes} full of {loot:loot}.
{^he} hurried to the {place}, and {spot} there really was {a :ages} {:boxes} of {loot:loot}.
[TreasureClose]
2 {hero} did not keep the {loot}, but {loot.uses}.
So {hero} took the {loot} home, and the next day {he} {loot.uses}.
"This is for all of us," said {hero}, and {he} {loot.uses}.
{^he} kept only the {clue} as a memory. As for the {loot}, {he} {loot.uses}.
[Grow]
{GrowSeed} {GrowWait} {GrowPest} {GrowBig} {GrowClose}
[GrowSeed]
2 One {:moments}, {folk:folk} gave {hero} {a plant:plants} seed, and {he} planted it {spot:garden_spots}.
{hero} found {a plant:plants} seed in the {:colors} {:clothes} of {folk:folk} and planted it {spot:garden_spots}.
{hero} traded {a :pocket_adjectives} {:pocket_nouns} with {folk:folk} for {a plant:plants} seed and put it into
  the ground {spot:garden_spots}.
[GrowWait]
2 {^he} watered it for {:spans}, but nothing happened. "Be patient," said {folk}.
Every day {he} looked {spot}, and every day there was only earth.
"Grow, little {plant}," {:called} {hero}, and after {:spans} a green tip came up.
{^he} sang to it for {:spans}, and the {scene:scenery} {scene.does}.
[GrowPest]
2 Then {pest:pests} came and {pest.harms}, so {hero} {pest.fixes}.
When it was as high as {his} knee, {pest:pests} {pest.harms}, but {hero} {pest.fixes}.
{hero} felt {:sad} when {pest:pests} {pest.harms}, and {he} {pest.fixes}.
[GrowBig]
2 By the end of {:seasons}, the {plant} was as big as {:big_things}.
Then came the sun and the rain, and the {plant} grew as big as {:big_things}.
"I have never seen such {a plant}," said {folk}, for it was as big as {:big_things}.
[GrowClose]
2 {hero} invited {folk}, and together they {plant.uses}.
Everyone came to see the {plant} {spot}, and they {plant.uses}.
{hero} and {his} {:family} {plant.uses}, and {he} kept one seed for the next year.
[Build]
{BuildWish} {BuildFail} {BuildHelp} {BuildAgain} {BuildClose}
[BuildWish]
2 One {:moments}, {hero} wanted to build {a build:builds}, so {he} gathered {part:build.parts}.
{hero} had always wanted {a build:builds}, and one {:moments} {he} looked for {part:build.parts} to make one.
"I will make {a build:builds} out of {part:build.parts}," {:called} {hero} one {:moments}.
One {:moments}, {hero} drew {a :colors} {build:builds} made of {part:build.parts} and began to build it.
[BuildFail]
2 {^he} worked for {:spans}, but {build.mishaps}.
It was almost done, but then {build.mishaps}.
{^he} worked until {:until_times}, but then {build.mishaps}, and {he} felt {:sad}.
[BuildHelp]
2 "Two are better than one," said {a :manners} {helper:helpers} who was passing by.
2 Then {a :manners} {helper:helpers} {helper.came}. "Let me help you with the {part}," {helper.said} the {helper}.
{^his} {helper:family} saw it and fetched more {part}.
[BuildAgain]
2 So {hero} and the {helper} began again, and when {:until_times}, the {build} was ready.
They needed {:spans} and more {part}, and then the {build} was finished.
"Try once more," said the {helper}, and this time the {build} was perfect.
[BuildClose]
2 Together they {build.uses} until {:until_times}.
{hero} {:joys}, and then {he} and the {helper} {build.uses}.
The {helper} was {:happy}, and all day long they {build.uses}.
Above it they hung a sign with the words "The {build} of {hero} and the {helper}" in {:colors} paint.
[Errand]
{ErrandWish} {ErrandTrouble} {ErrandHelp} {ErrandThanks?}{ErrandGive} {ErrandClose}
[ErrandWish]
2 One {:moments}, {hero} took {a gift:gifts} and set out to visit {his} {kin:family}, who lived {:distances}.
2 {^his} {kin:family} lived {:distances}, and one {:moments} {hero} wanted to bring {kin.him} {a gift:gifts}.
"Please take this {gift:gifts} to your {kin:family}," said {folk:folk} one {:moments}, so {hero} set out.
[ErrandTrouble]
2 But on the way, {obstacle:obstacles}.
Halfway there, {obstacle:obstacles}, and {hero} felt {:sad}.
{^he} had not gone far when {obstacle:obstacles}.
The {scene:scenery} {scene.does}, but then {obstacle:obstacles}.
[ErrandHelp]
2 Then {a :manners} {helper:obstacle.helpers} came along and {obstacle.fixes}.
"Let me help," said {a :manners} {helper:obstacle.helpers}, who {obstacle.fixes}.
{hero} waited until {:until_times}, and then {a :manners} {helper:obstacle.helpers} {obstacle.fixes}.
[ErrandThanks]
2 {hero} thanked the {helper} with {:snacks} and walked on.
"How kind of you," {:called} {hero}, and shook hands with the {helper}.
The {helper} asked for nothing but {:payments}.
[ErrandGive]
2 "What {a :lovely} {gift}!" said {his} {kin} when {hero} came in at last.
{^his} {kin} opened the door, saw the {gift} and felt {:happy}.
At last {hero} knocked on {a :colors} door and gave the {gift} to {his} {kin}.
[ErrandClose]
2 They sat by the fire, and {hero} told {kin.him} about the {helper} until {:until_times}.
Then {he} fell asleep on the sofa and dreamed of {:dreams}.
On the way back, {hero} brought the {helper} {:snacks} from {his} {kin}.
"Next time, bring the {helper} along," said the {kin} and gave {him} {:snacks}.
[Race]
{RaceWish} {RaceBoast} {RaceTrouble} {RaceHelp} {RaceFinish} {RaceClose}
[RaceWish]
2 Every {:seasons} there was {a event:events} near the {place:places}, and {hero} wanted to win the {prize:prizes}.
One {:moments}, everybody came to see the {event:events}, where the winner would get {a prize:prizes}.
{hero} had practiced for {:spans} to win the {event:events}, because the prize was {a prize:prizes}.
[RaceBoast]
2 "You are much too {:slownesses}," laughed {rival:rivals}, who was {:boasts}.
2 Nobody thought that {hero} could beat {rival:rivals}, who was {:boasts}.
"That {prize} is mine," said {rival:rivals}, who was {:boasts}.
[RaceTrouble]
2 {hero} was close behind when {rival} {trouble:troubles}.
Halfway through the {event}, {rival} {trouble:troubles}.
{rival} was far ahead, but near the end {rival.he} {trouble:troubles}.
[RaceHelp]
2 {hero} could have won, but {he} stopped and {trouble.fixes}.
"Wait for me, {rival}!" {:called} {hero}, who {trouble.fixes}.
All the others hurried on, but {hero} {trouble.fixes}.
[RaceFinish]
2 They crossed the line together, and both of them got the {prize}.
{hero} came in last, but the judges gave {him} the {prize} for a kind heart.
{rival} won the {event} after all, but gave the {prize} to {hero}.
[RaceClose]
2 Ever since, {hero} and {rival} have been friends.
"You are the real winner," said {rival}, and {hero} {:joys}.
To this day, the {prize} has its place {:safe}.
{hero} was {:happy} and slept that night with the {prize} beside the bed.
"""
